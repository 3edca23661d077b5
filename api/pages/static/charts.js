// Figures: the server gives Plotly's JSON with colours by name, the page gives the names their values.
const drawn = new Map();
// Plotly's own way of following its place forgets how high a figure is.
const widths = new ResizeObserver((entries) => {
  for (const { target } of entries) if (target.isConnected && target.clientWidth !== drawn.get(target)) draw(target);
});

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function resolved(value) {
  if (typeof value === "string") {
    const name = /^var\((--[\w-]+)\)$/.exec(value);
    return name ? colour(name[1]) : value;
  }
  if (Array.isArray(value)) return value.map(resolved);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, resolved(each)]));
  }
  return value;
}

function framed(layout, narrow, several) {
  const text = colour("--chart-text");
  const grid = colour("--chart-grid");
  const frame = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: colour("--font") || "sans-serif", size: 12, color: text },
    margin: { l: 8, r: 12, t: layout.legend && several ? 56 : 16, b: 36 },
    hoverlabel: { align: "left" },
    ...layout,
  };
  for (const name of Object.keys(frame).filter((each) => /^[xy]axis/.test(each))) {
    frame[name] = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, fixedrange: true, ...frame[name] };
    if (narrow) frame[name].tickfont = { size: 10 };
  }
  for (const shape of frame.shapes ?? []) {
    shape.line = { color: text, width: 1, ...shape.line };
  }
  return frame;
}

export function draw(element) {
  const source = document.getElementById(element.dataset.figure);
  if (!source || !window.Plotly) return;
  const figure = JSON.parse(source.textContent);
  const narrow = element.clientWidth < 480;
  const layout = { ...framed(resolved(figure.layout), narrow, figure.data.length > 1), width: element.clientWidth, autosize: false };
  element.style.height = `${layout.height}px`;
  const options = { displayModeBar: false, displaylogo: false };
  return window.Plotly.react(element, resolved(figure.data), layout, options).then(() => {
    if (!drawn.has(element)) {
      element.on("plotly_click", (event) => {
        const trial = event.points?.[0]?.customdata;
        if (trial !== undefined) element.dispatchEvent(new CustomEvent("point", { bubbles: true, detail: trial }));
      });
    }
    drawn.set(element, layout.width);
    element.dataset.drawn = "yes";
    widths.observe(element);
  });
}

export function drawAll(root = document) {
  for (const element of root.querySelectorAll(".chart")) draw(element);
}

addEventListener("schemechange", () => {
  for (const element of [...drawn.keys()]) {
    if (element.isConnected) draw(element);
    else drawn.delete(element);
  }
});
drawAll();
