// A network's graph in layers from its inputs down, and what is other in it than in another network's.
import { graphBytes, readGraph } from "./onnx.js";

const MOST_BYTES = 256e6;
const MOST_NODES = 3000;
const WIDTH = 190;
const HEIGHT = 44;
const GAP_X = 24;
const GAP_Y = 34;
const SVG = "http://www.w3.org/2000/svg";
const place = document.getElementById("graph");
const said = document.getElementById("graph-said");

async function load(id) {
  const response = await fetch(`/v1/models/${id}/content`);
  if (!response.ok) throw new Error("The network cannot be downloaded: it is not ready, or was deleted.");
  if (Number(response.headers.get("Content-Length") ?? 0) > MOST_BYTES) throw new Error("The network is over 256 MB, which is too much for a page. Download it and use a viewer on your machine.");
  return readGraph(graphBytes(new Uint8Array(await response.arrayBuffer())));
}

// A node is the same in both where its name is, else where it makes the same tensor.
function key(node) {
  return node.name || node.outputs[0];
}

function shapes(node, graph) {
  return node.inputs.map((name) => graph.weights.get(name)).filter(Boolean).map((weight) => `${weight.type}[${weight.dims.join(",")}]`).join(" ");
}

// Where types stay, shapes alone are told: there is little room.
function change(was, is) {
  const types = (text) => text.replace(/\[[^\]]*\]/g, "");
  const alone = (text) => text.replace(/\w+(?=\[)/g, "");
  return types(was) === types(is) ? `${alone(was)} → ${alone(is)}` : `${was} → ${is}`;
}

function merged(graph, beside) {
  const nodes = graph.nodes.map((node) => ({ ...node, state: "", told: shapes(node, graph) }));
  if (!beside) return nodes;
  const before = new Map(beside.nodes.map((node) => [key(node), node]));
  for (const node of nodes) {
    const old = before.get(key(node)) ?? beside.nodes.find((each) => each.outputs[0] === node.outputs[0]);
    if (!old) {
      node.state = "new";
      continue;
    }
    before.delete(key(old));
    const was = shapes(old, beside);
    if (old.op !== node.op) [node.state, node.told] = ["other", `was ${old.op}`];
    else if (was !== node.told) [node.state, node.told] = ["other", change(was, node.told)];
  }
  const madeNow = new Set(nodes.flatMap((node) => node.outputs));
  for (const old of before.values()) {
    // Its consumers may have moved on: it hangs where its inputs still are.
    nodes.push({ ...old, state: "gone", told: shapes(old, beside), outputs: old.outputs.map((name) => (madeNow.has(name) ? `${name} (gone)` : name)) });
  }
  return nodes;
}

// Longest path from the inputs gives the row; within a row nodes stand below what they read.
function placed(nodes) {
  const maker = new Map();
  for (const node of nodes) for (const name of node.outputs) if (name) maker.set(name, node);
  const from = (node) => node.inputs.map((name) => maker.get(name)).filter((each) => each && each !== node);
  const waiting = new Map(nodes.map((node) => [node, new Set(from(node)).size]));
  const readers = new Map(nodes.map((node) => [node, []]));
  for (const node of nodes) for (const each of new Set(from(node))) readers.get(each).push(node);
  const ready = nodes.filter((node) => waiting.get(node) === 0);
  for (const node of ready) node.row = 0;
  for (let at = 0; at < ready.length; at++) {
    for (const reader of readers.get(ready[at])) {
      reader.row = Math.max(reader.row ?? 0, ready[at].row + 1);
      waiting.set(reader, waiting.get(reader) - 1);
      if (waiting.get(reader) === 0) ready.push(reader);
    }
  }
  const rows = [];
  for (const node of nodes) (rows[node.row ?? 0] ??= []).push(node);
  let widest = 0;
  for (const row of rows.filter(Boolean)) {
    for (const node of row) {
      const above = from(node).filter((each) => each.x !== undefined);
      node.wish = above.length ? above.reduce((sum, each) => sum + each.x, 0) / above.length : 0;
    }
    row.sort((one, other) => one.wish - other.wish);
    let next = 0;
    for (const node of row) {
      node.x = Math.max(next, node.wish);
      next = node.x + WIDTH + GAP_X;
    }
    widest = Math.max(widest, next);
  }
  for (const node of nodes) node.y = (node.row ?? 0) * (HEIGHT + GAP_Y) + GAP_Y;
  return { edges: nodes.flatMap((node) => from(node).map((each) => [each, node])), width: widest + GAP_X, height: (rows.length + 1) * (HEIGHT + GAP_Y) };
}

function make(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function cut(text, most) {
  return text.length <= most ? text : `${text.slice(0, most / 2 - 1)}…${text.slice(-(most / 2))}`;
}

function show(nodes) {
  const { edges, width, height } = placed(nodes);
  const svg = make("svg", { width, height, role: "img", "aria-label": `${nodes.length} nodes` });
  for (const [one, other] of edges) {
    const [x1, y1, x2, y2] = [one.x + WIDTH / 2 + 8, one.y + HEIGHT, other.x + WIDTH / 2 + 8, other.y];
    svg.append(make("path", { class: "graph-edge", d: `M${x1},${y1} C${x1},${(y1 + y2) / 2} ${x2},${(y1 + y2) / 2} ${x2},${y2}` }));
  }
  for (const node of nodes) {
    const group = make("g", { class: `graph-node ${node.state}`, transform: `translate(${node.x + 8},${node.y})` });
    group.append(make("title", {}, `${node.op} ${node.name}\n${node.told}\n${node.inputs.join(", ")} → ${node.outputs.join(", ")}`));
    group.append(make("rect", { width: WIDTH, height: HEIGHT, rx: 7 }));
    group.append(make("text", { x: 10, y: 18 }, cut(node.op, 26)));
    group.append(make("text", { x: 10, y: 34, class: "graph-name" }, cut(node.state === "other" ? node.told : node.name || node.outputs[0], 24)));
    node.element = group;
    svg.append(group);
  }
  place.replaceChildren(svg);
}

function count(nodes, state) {
  return nodes.filter((node) => node.state === state).length;
}

async function start() {
  const graph = await load(place.dataset.model);
  const beside = place.dataset.beside ? await load(place.dataset.beside) : null;
  const nodes = merged(graph, beside);
  if (nodes.length > MOST_NODES) throw new Error(`The graph has ${nodes.length} nodes, which is too many to draw. The operators are on the network's page.`);
  show(nodes);
  said.textContent = beside
    ? `${count(nodes, "new")} nodes are new (green), ${count(nodes, "other")} are other than before (yellow), ${count(nodes, "gone")} are gone (red, dashed), ${count(nodes, "")} are the same.`
    : `${nodes.length} nodes, from ${graph.inputs.join(", ")} to ${graph.outputs.join(", ")}.`;
  document.getElementById("find").addEventListener("input", (event) => {
    const text = event.target.value.trim().toLowerCase();
    const found = nodes.filter((node) => text && `${node.op} ${node.name}`.toLowerCase().includes(text));
    for (const node of nodes) node.element.classList.toggle("found", found.includes(node));
    if (found[0]) place.scrollTo({ left: Math.max(0, found[0].x - 60), top: Math.max(0, found[0].y - 120) });
  });
}

start().catch((error) => {
  said.textContent = error.message;
  said.classList.add("bad");
  place.hidden = true;
});
