// Steps of a recipe, with a field for each parameter of their passes, made from the passes' own schema.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === undefined || value === null) continue;
    made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function resolve(schema, root) {
  if (!schema.$ref) return schema;
  return resolve(schema.$ref.split("/").slice(1).reduce((at, part) => at[part], root), root);
}

function plain(schema, root) {
  const found = resolve(schema, root);
  const ways = (found.anyOf ?? found.oneOf ?? [found]).map((each) => resolve(each, root));
  const some = ways.filter((each) => each.type !== "null");
  return { ...found, ...some[0], many: some.length > 1, nullable: some.length < ways.length };
}

let count = 0;

// Gives { node, value() } for a parameter; value() is undefined where it is at its default.
function field(name, schema, root, given) {
  const kind = plain(schema, root);
  const id = `field-${++count}`;
  const usual = schema.default;
  const start = given ?? usual;
  const label = element("label", { for: id }, name.replaceAll("_", " "));
  const about = schema.description ? element("p", { class: "hint", id: `${id}-about` }, schema.description) : "";
  const described = schema.description ? `${id}-about` : undefined;
  let input;
  let read;
  const choices = kind.enum ?? (kind.const !== undefined ? [kind.const] : null);
  if (choices && !kind.many) {
    input = element("select", { id, "aria-describedby": described });
    for (const each of kind.nullable ? [null, ...choices] : choices) {
      input.append(element("option", { value: JSON.stringify(each), selected: each === start }, each === null ? "not said" : String(each)));
    }
    read = () => JSON.parse(input.value);
  } else if (kind.type === "boolean" && !kind.many) {
    input = element("input", { id, type: "checkbox", checked: start === true, "aria-describedby": described });
    read = () => input.checked;
  } else if ((kind.type === "number" || kind.type === "integer") && !kind.many) {
    input = element("input", { id, type: "number", step: kind.type === "integer" ? 1 : "any", min: kind.minimum ?? kind.exclusiveMinimum, max: kind.maximum ?? kind.exclusiveMaximum, value: start ?? "", placeholder: kind.nullable ? "by itself" : "", "aria-describedby": described });
    read = () => (input.value === "" ? null : Number(input.value));
  } else {
    const text = typeof start === "string" ? start : start === undefined || start === null ? "" : JSON.stringify(start);
    input = element("textarea", { id, rows: 2, "aria-describedby": described });
    input.value = text;
    read = () => {
      if (input.value.trim() === "") return null;
      try {
        return JSON.parse(input.value);
      } catch {
        return input.value.trim();
      }
    };
  }
  const node = element("div", {}, label, input, about);
  const value = () => {
    const found = read();
    if (JSON.stringify(found) === JSON.stringify(usual ?? null)) return undefined;
    return found === null && !kind.nullable ? undefined : found;
  };
  return { node, value };
}

export class RecipeBuilder {
  constructor(list, none, passes) {
    this.list = list;
    this.none = none;
    this.passes = new Map(passes.map((each) => [each.type, each]));
    this.steps = [];
  }

  clear() {
    this.steps = [];
    this.show();
  }

  add(type, given = {}) {
    const pass = this.passes.get(type);
    const fields = Object.entries(pass.schema.properties ?? {})
      .filter(([name]) => name !== "type")
      .map(([name, schema]) => [name, field(name, schema, pass.schema, given[name])]);
    const step = { type, fields };
    const up = element("button", { type: "button", class: "quiet", "aria-label": `Move ${type} up` }, "↑");
    const down = element("button", { type: "button", class: "quiet", "aria-label": `Move ${type} down` }, "↓");
    const gone = element("button", { type: "button", class: "quiet", "aria-label": `Remove ${type}` }, "Remove");
    up.addEventListener("click", () => this.move(step, -1));
    down.addEventListener("click", () => this.move(step, 1));
    gone.addEventListener("click", () => {
      this.steps = this.steps.filter((each) => each !== step);
      this.show();
    });
    const head = element("div", { class: "pass-head" }, element("strong", {}, type), up, down, gone);
    const body = fields.length
      ? element("details", {}, element("summary", {}, `${fields.length} parameters`), element("div", { class: "grid" }, ...fields.map(([, each]) => each.node)))
      : "";
    step.node = element("li", { class: "pass" }, head, element("p", { class: "hint" }, pass.summary), body);
    this.steps.push(step);
    this.show();
  }

  move(step, by) {
    const at = this.steps.indexOf(step);
    const to = at + by;
    if (to < 0 || to >= this.steps.length) return;
    this.steps.splice(at, 1);
    this.steps.splice(to, 0, step);
    this.show();
  }

  show() {
    this.list.replaceChildren(...this.steps.map((each) => each.node));
    this.none.hidden = this.steps.length > 0;
  }

  value() {
    return this.steps.map(({ type, fields }) => {
      const told = fields.map(([name, each]) => [name, each.value()]).filter(([, value]) => value !== undefined);
      return { type, ...Object.fromEntries(told) };
    });
  }
}
