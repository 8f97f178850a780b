/** The tree of SID prefixes as a picture: the root in the middle, a ring for each level, beams lit. */

import { percent } from "./call.js";

const SVG = "http://www.w3.org/2000/svg";
const RADIUS = 182, SIZE = 420;
const NAMED = 5; // beams with a number in the picture

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A node for each prefix, by its codes; the paths of beams are added to what is drawn. */
function grow(prefixes, beams) {
  const nodes = new Map([["", { codes: [], children: [], items: 0 }]]);
  const add = (codes) => {
    const key = codes.join("-");
    if (!nodes.has(key)) {
      const parent = add(codes.slice(0, -1)), node = { codes, children: [], items: 0, parent };
      parent.children.push(node);
      nodes.set(key, node);
    }
    return nodes.get(key);
  };
  for (const prefix of prefixes) Object.assign(add(prefix.codes), { items: prefix.items, label: prefix.label });
  beams.forEach((beam, place) => {
    const share = Math.exp(beam.score);
    for (let node = add(beam.codes); node; node = node.parent) {
      node.share = (node.share ?? 0) + share;
      node.beam = Math.min(node.beam ?? Infinity, place);
    }
  });
  return nodes;
}

/** Gives each node its angle: leaves stand evenly around the circle, in the order of their codes. */
function place(root) {
  const leaves = [];
  const walk = (node) => {
    node.children.sort((one, other) => one.codes.at(-1) - other.codes.at(-1));
    if (!node.children.length) leaves.push(node);
    node.children.forEach(walk);
  };
  walk(root);
  leaves.forEach((leaf, number) => { leaf.angle = (2 * Math.PI * number) / leaves.length - Math.PI / 2; });
  const middle = (node) => {
    if (node.angle === undefined) node.angle = node.children.map(middle).reduce((sum, one) => sum + one, 0) / node.children.length;
    return node.angle;
  };
  middle(root);
}

/** Draws the tree. Returns the picture, and a function that marks the path of some codes. */
export function draw(tree, beams) {
  const nodes = grow(tree.prefixes, beams), root = nodes.get("");
  place(root);
  const depth = Math.max(1, ...[...nodes.values()].map((node) => node.codes.length));
  const at = (node, more = 0) => {
    const far = (RADIUS * node.codes.length) / depth + (node === root ? 0 : more);
    return [far * Math.cos(node.angle), far * Math.sin(node.angle)].map((one) => Number(one.toFixed(1)));
  };
  const picture = shape("svg", { viewBox: `${-SIZE / 2} ${-SIZE / 2} ${SIZE} ${SIZE}`, role: "img" });
  const title = shape("title", {});
  const first = beams[0] && nodes.get(beams[0].codes.join("-"));
  title.textContent = beams.length
    ? `The tree of SID prefixes. ${beams.length} beams are lit; the likeliest is ${beams[0].codes.join("-")}${first.label ? `, ${first.label},` : ""} with ${percent(Math.exp(beams[0].score))}.`
    : "The tree of SID prefixes.";
  picture.append(title);
  const most = Math.max(...[...nodes.values()].map((node) => (node === root ? 0 : node.share ?? 0)), 1e-9);
  const ordered = [...nodes.values()].filter((node) => node !== root).sort((one, other) => (one.share ?? 0) - (other.share ?? 0));
  const edges = new Map();
  for (const node of ordered) {
    const strength = node.share === undefined ? 0 : Math.sqrt(node.share / most);
    const [x1, y1] = at(node.parent), [x2, y2] = at(node);
    const edge = shape("line", { x1, y1, x2, y2, class: node.share === undefined ? "edge" : "edge lit" });
    if (node.share !== undefined) edge.setAttribute("style", `stroke-width:${(0.6 + 3.4 * strength).toFixed(2)};opacity:${(0.35 + 0.65 * strength).toFixed(2)}`);
    edges.set(node, edge);
    picture.append(edge);
  }
  for (const node of ordered) {
    const [cx, cy] = at(node), size = node.share === undefined ? 1.6 : 2.4 + 3 * Math.sqrt(node.share / most);
    const dot = shape("circle", { cx, cy, r: size.toFixed(1), class: node.share === undefined ? "node" : "node lit" });
    const name = shape("title", {});
    name.textContent = [`SID ${node.codes.join("-")}`, node.label, node.items && `${node.items} items`, node.share !== undefined && percent(node.share)].filter(Boolean).join(", ");
    dot.append(name);
    picture.append(dot);
  }
  picture.append(shape("circle", { cx: 0, cy: 0, r: 5, class: "node lit" }));
  const named = [];
  beams.slice(0, NAMED).forEach((beam, number) => {
    const node = nodes.get(beam.codes.join("-"));
    let far = 16, [x, y] = at(node, far);
    // Beams that stand side by side have their numbers one inside the other.
    while (named.some(([a, b]) => Math.hypot(x - a, y - b) < 13) && far > -60) [x, y] = at(node, (far -= far > 0 ? 32 : 16));
    named.push([x, y]);
    const text = shape("text", { x, y, "text-anchor": "middle", "dominant-baseline": "central" });
    text.textContent = String(number + 1);
    picture.append(text);
  });
  const mark = (codes) => {
    for (const edge of edges.values()) edge.classList.remove("chosen");
    for (let node = codes && nodes.get(codes.join("-")); node && node !== root; node = node.parent) edges.get(node).classList.add("chosen");
  };
  return { picture, mark };
}

/** The lines of a list beside the picture: the first beams with their labels. */
export function lines(beams, labels) {
  return beams.slice(0, NAMED).map((beam) => {
    const label = labels.get(beam.codes.join("-"));
    return `${label ? `${label}, ` : ""}SID ${beam.codes.join("-")}: ${percent(Math.exp(beam.score))}`;
  });
}
