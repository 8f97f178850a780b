/** The page: one or two columns that ask, and what operators see. */

import { $, call, element, post } from "./call.js";
import { card } from "./card.js";
import { showClock, showMetrics, showVersions, start as startOperating } from "./operate.js";
import { draw, lines } from "./tree.js";

const REFRESH_MS = 3000;
const SOURCES = { index: "from the index", computed: "computed", popular: "popular items: there is no list of this user" };
const state = { tasks: [], versions: [], models: [], tree: null };
const columns = [];

/** The tree of the catalogue that made an answer; it is read once for each version. */
async function treeOf(answer) {
  const fits = (tree) => tree && tree.version === answer.version && tree.model === answer.model;
  if (!fits(state.tree)) state.tree = await call("v1/catalogue/tree");
  return fits(state.tree) ? state.tree : { ...state.tree, prefixes: [] };
}

class Column {
  constructor(name) {
    this.form = $("column").content.firstElementChild.cloneNode(true);
    this.name = name;
    this.answer = null;
    const find = (selector) => this.form.querySelector(selector);
    this.note = find(".note");
    this.cards = find(".cards");
    this.figure = find(".tree");
    this.fields = this.form.elements;
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.show(() => this.compute()); });
    this.fields.index.addEventListener("click", () => this.show(() => this.read()));
    this.fields.user.addEventListener("change", () => this.showUser());
    this.fields.task.addEventListener("change", () => this.chooseTask());
    this.fill();
    this.showUser();
  }

  /** Fills the lists of tasks and versions. */
  fill() {
    const tasks = state.tasks.map((task) => new Option(task.name, task.instruction));
    const by = [
      ...state.versions.filter((one) => !one.is_active).map((one) => new Option(`version ${one.name}`, `version:${one.name}`)),
      ...state.models.filter((one) => !one.is_active).map((one) => new Option(`model ${one.name}`, `export:${one.name}`)),
    ];
    for (const [select, options] of [[this.fields.task, tasks], [this.fields.by, by]]) {
      const chosen = select.value;
      select.replaceChildren(select.options[0], ...options);
      if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
    }
  }

  /** Writes the instruction of a task; a slot such as {query} is left for the user to type. */
  chooseTask() {
    const input = this.fields.instruction, text = this.fields.task.value;
    const slot = text.indexOf("{");
    input.value = text.replace(/\{\w+\}/, "");
    input.focus();
    if (slot >= 0) input.setSelectionRange(slot, slot);
  }

  compute() {
    const fields = this.fields, [kind, by] = fields.by.value.split(/:(.*)/);
    const body = {
      user_id: fields.user.value.trim(),
      instruction: fields.instruction.value.trim(),
      count: Number(fields.count.value),
      seen: fields.seen.value,
      explain: true,
      is_shown: false, // the user of the page is not the user of the list
      deadline_ms: 60000,
    };
    return kind ? post("v1/preview", { ...body, [kind]: by }) : post("v1/recommendations", body);
  }

  read() {
    const fields = this.fields, user = encodeURIComponent(fields.user.value.trim() || "anyone");
    const query = new URLSearchParams({ count: fields.count.value, seen: fields.seen.value, explain: "true", is_shown: "false" });
    return call(`v1/users/${user}/recommendations?${query}`);
  }

  async show(request) {
    this.note.className = "note";
    this.note.textContent = "computing …";
    const began = performance.now();
    try {
      this.answer = await request();
      const time = `${Math.round(performance.now() - began)} ms`;
      const tree = await treeOf(this.answer);
      this.draw(tree);
      this.cards.replaceChildren();
      columns.forEach((column) => column.list());
      const { source, items, version, age_seconds: age } = this.answer;
      const old = source === "index" ? `, ${age.toFixed(0)} s old` : "";
      this.note.textContent = `${items.length} items, ${SOURCES[source]}${old}, version ${version}, model ${this.answer.model.slice(0, 8)}, ${time}`;
    } catch (error) {
      this.note.className = "note bad";
      this.note.textContent = error.message;
      if (error.status === 401 || error.status === 403) $("key").focus();
    }
  }

  /** Draws the tree with the beams of the answer, or with the prefixes of its items. */
  draw(tree) {
    const { beams } = this.answer;
    this.figure.hidden = !beams.length;
    this.labels = new Map(tree.prefixes.map((prefix) => [prefix.codes.join("-"), prefix.label]));
    this.mark = () => {};
    if (!beams.length) return;
    const { picture, mark } = draw(tree, beams);
    this.mark = mark;
    this.figure.querySelector(".picture").replaceChildren(picture);
    const drawn = tree.prefixes.length ? `${tree.prefixes.length} prefixes, ` : "only the paths of beams, ";
    this.figure.querySelector("figcaption").textContent = `The tree of SID prefixes: ${drawn}${beams.length} beams lit. Open a card to see its path.`;
    this.figure.querySelector(".beams").replaceChildren(...lines(beams, this.labels).map((text) => element("li", text)));
  }

  /** Shows the cards; beside another column, each says where the other one has the item. */
  list() {
    if (!this.answer) return;
    const other = columns.find((column) => column !== this && column.answer);
    const open = new Set([...this.cards.querySelectorAll("details[open]")].map((one) => one.parentElement.dataset.item));
    const places = other && new Map(other.answer.items.map((item, place) => [item.item_id, place + 1]));
    this.cards.replaceChildren(...this.answer.items.map((item, place) => card(
      item, place + 1, this.labels, (codes) => this.mark(codes), places && (places.get(item.item_id) ?? 0),
    )));
    for (const one of this.cards.children) {
      const reasons = one.querySelector("details");
      if (reasons && open.has(one.dataset.item)) reasons.open = true;
    }
  }

  async showUser() {
    const place = this.form.querySelector(".user"), user = this.fields.user.value.trim();
    const summary = this.form.querySelector(".who summary");
    if (!user) {
      summary.textContent = "The user: anyone";
      place.replaceChildren(element("p", "Anyone: no profile, no history."));
      return;
    }
    const path = `v1/users/${encodeURIComponent(user)}`;
    const profile = await call(path).then((found) => found.profile, () => ({}));
    const events = await call(`${path}/events?count=50`).then((found) => found.events, () => []);
    const list = element("ul");
    for (const event of events.reverse()) {
      const when = new Date(event.timestamp * 1000).toISOString().slice(0, 16).replace("T", " ");
      list.append(element("li", `${when} ${event.event} ${event.title || event.item_id}`));
    }
    list.tabIndex = 0;
    list.setAttribute("aria-label", "History, newest first");
    const text = Object.entries(profile).map(([name, value]) => `${name}: ${value}`).join(", ");
    summary.textContent = `The user: ${events.length} events${events.length === 50 ? " or more" : ""}, ${text || "no profile"}`;
    place.replaceChildren(element("p", text || "No profile."), list);
  }
}

/** Adds a column that begins as the first one, or takes the second one away. */
function compare() {
  const isOne = columns.length === 1;
  if (isOne) {
    const added = new Column("Right");
    for (const name of ["user", "task", "instruction", "count", "seen"]) added.fields[name].value = columns[0].fields[name].value;
    columns.push(added);
    $("columns").append(added.form);
    added.showUser();
    added.fields.user.focus();
  } else columns.pop().form.remove();
  columns.forEach((column) => {
    column.form.querySelector("h3").textContent = isOne ? column.name : "";
    column.form.setAttribute("aria-label", isOne ? column.name : "Question");
    column.list();
  });
  $("compare").setAttribute("aria-pressed", String(isOne));
}

async function showUsers() {
  const { user_ids } = await call("v1/users?count=200");
  $("users").replaceChildren(...user_ids.map((user) => new Option(user, user)));
}

async function showTasks() {
  state.tasks = (await call("v1/tasks")).tasks;
  columns.forEach((column) => column.fill());
}

function start() {
  columns.push(new Column("Left"));
  columns[0].form.setAttribute("aria-label", "Question");
  $("columns").append(columns[0].form);
  $("compare").addEventListener("click", compare);
  document.addEventListener("versions", ({ detail }) => {
    Object.assign(state, detail);
    columns.forEach((column) => column.fill());
  });
  startOperating();
  const all = () => Promise.allSettled([showMetrics(), showClock(), showVersions(), showUsers(), showTasks()]);
  $("key").addEventListener("change", all);
  all();
  setInterval(showMetrics, REFRESH_MS);
  setInterval(() => showClock().catch(() => {}), REFRESH_MS);
}

start();
