"use strict";

const $ = (id) => document.getElementById(id);
const REFRESH_MS = 3000;

/** Calls the API. Throws an Error whose message says what the service said. */
async function call(path, options = {}) {
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}) };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 204) return null;
  const text = await answer.text();
  if (path === "metrics") return text;
  let body;
  try { body = JSON.parse(text); } catch { body = { error: text.slice(0, 200) }; }
  if (!answer.ok) throw new Error(body.where ? `${body.where}: ${body.error}` : body.error);
  return body;
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function card(item, place) {
  const made = element("li");
  made.append(element("b", `${place}. ${item.title}`));
  const facts = [item.item_id];
  if (item.probability !== null) {
    const bar = element("div", "", "bar"), filled = element("span");
    filled.style.width = `${Math.min(100, 100 * item.probability)}%`;
    bar.append(filled);
    made.append(bar);
    facts.push(`probability ${item.probability.toPrecision(3)}`);
  }
  if (item.details.cosine !== undefined) facts.push(`cosine ${item.details.cosine.toFixed(3)}`);
  if (item.details.prefix !== undefined) {
    facts.push(item.details.prefix > 0 ? `prefix no. ${item.details.prefix} of the beams` : "in no beam");
  }
  made.append(element("p", [...facts, ...item.reasons].join(" · "), "facts"));
  return made;
}

function column() {
  const form = $("column").content.firstElementChild.cloneNode(true);
  const note = form.querySelector(".note"), cards = form.querySelector(".cards");

  async function show(request) {
    note.className = "note";
    note.textContent = "computing …";
    const began = performance.now();
    try {
      const answer = await request();
      cards.replaceChildren(...answer.items.map((item, place) => card(item, place + 1)));
      const sources = { index: "from the index", computed: "computed", popular: "popular items: there is no list of this user" };
      const age = answer.source === "index" ? `, ${answer.age_seconds.toFixed(0)} s old` : "";
      const time = `${Math.round(performance.now() - began)} ms`;
      note.textContent = `${answer.items.length} items, ${sources[answer.source]}${age}, version ${answer.version}, ${time}`;
    } catch (error) {
      note.className = "note bad";
      note.textContent = error.message;
    }
    await showUser();
  }

  async function showUser() {
    const place = form.querySelector(".user"), user = form.elements.user.value.trim();
    if (!user) { place.replaceChildren(element("p", "Anyone: no profile, no history.")); return; }
    const path = `v1/users/${encodeURIComponent(user)}`;
    const profile = await call(path).then((found) => found.profile, () => ({}));
    const events = await call(`${path}/events?count=50`).then((found) => found.events, () => []);
    const list = element("ul");
    for (const event of events.reverse()) {
      const when = new Date(event.timestamp * 1000).toISOString().slice(0, 16).replace("T", " ");
      list.append(element("li", `${when} ${event.event} ${event.title || event.item_id}`));
    }
    const text = Object.entries(profile).map(([name, value]) => `${name}: ${value}`).join(", ");
    place.replaceChildren(element("p", text || "No profile."), list);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const fields = form.elements;
    const body = {
      user_id: fields.user.value.trim(),
      instruction: fields.instruction.value.trim(),
      count: Number(fields.count.value),
      seen: fields.seen.value,
      explain: true,
      is_shown: false, // the user of the page is not the user of the list
      deadline_ms: 60000,
    };
    show(() => call("v1/recommendations", { method: "POST", body: JSON.stringify(body) }));
  });
  form.elements.index.addEventListener("click", () => {
    const fields = form.elements, user = encodeURIComponent(fields.user.value.trim() || "anyone");
    const query = new URLSearchParams({ count: fields.count.value, seen: fields.seen.value, explain: "true", is_shown: "false" });
    show(() => call(`v1/users/${user}/recommendations?${query}`));
  });
  return form;
}

/** The sum of a metric over its labels, by its name in the text of Prometheus. */
function total(text, name, needed = "") {
  let sum = 0;
  for (const line of text.split("\n")) {
    if (line.startsWith(name) && !line.startsWith("#") && line.includes(needed)) {
      const rest = line.slice(name.length);
      if (rest.startsWith("{") || rest.startsWith(" ")) sum += Number(line.split(" ").pop());
    }
  }
  return sum;
}

async function refresh() {
  try {
    const text = await call("metrics");
    const answers = (source) => total(text, "sigma_answers_total", `source="${source}"`);
    const seconds = total(text, "sigma_request_seconds_sum"), count = total(text, "sigma_request_seconds_count");
    const numbers = {
      "users with lists": total(text, "sigma_index_users"),
      "users who wait": total(text, "sigma_queue_size"),
      "longest wait": `${total(text, "sigma_queue_oldest_seconds").toFixed(0)} s`,
      "event to list, last batch": `${total(text, "sigma_staleness_seconds").toFixed(1)} s`,
      "answers: index, computed, popular": `${answers("index")}, ${answers("computed")}, ${answers("popular")}`,
      "mean time of a call": count ? `${(1000 * seconds / count).toFixed(1)} ms` : "–",
    };
    $("live").replaceChildren(...Object.entries(numbers).map(([name, value]) => {
      const pair = element("div");
      pair.append(element("dt", name), element("dd", String(value)));
      return pair;
    }));
    $("health").textContent = total(text, "sigma_store_up") ? "the service answers" : "the store does not answer";
  } catch (error) {
    $("health").textContent = `the service does not answer: ${error.message}`;
  }
}

/** The time of a replayed log; nothing where the service has the time of its machine. */
async function showClock() {
  const clock = await call("v1/clock");
  $("clock").hidden = !clock.is_replay;
  if (!clock.is_replay) return;
  const when = new Date(clock.now * 1000).toISOString().slice(0, 16).replace("T", " ");
  $("clock").textContent = `replayed log: ${when}${clock.is_over ? ", its end" : `, ${clock.speed} times as fast`}`;
}

async function showVersions() {
  const { versions } = await call("v1/catalogue");
  $("versions").replaceChildren(...versions.map((version) => {
    const row = element("tr"), cell = element("td");
    if (version.is_active) cell.textContent = "active";
    else {
      const button = element("button", "Activate");
      button.type = "button";
      button.setAttribute("aria-label", `Activate version ${version.name}`);
      button.addEventListener("click", () => change(`v1/catalogue/versions/${version.name}/activate`));
      cell.append(button);
    }
    row.append(element("td", version.name), element("td", version.comment), cell);
    return row;
  }));
}

async function change(path) {
  $("versions-note").textContent = "loading …";
  try {
    const version = await call(path, { method: "POST" });
    $("versions-note").textContent = `version ${version.name} is active`;
    await showVersions();
  } catch (error) {
    $("versions-note").textContent = error.message;
  }
}

async function showUsers() {
  const { user_ids } = await call("v1/users?count=200");
  $("users").replaceChildren(...user_ids.map((user) => {
    const option = element("option");
    option.value = user;
    return option;
  }));
}

function start() {
  $("columns").append(column());
  $("compare").addEventListener("click", () => {
    const isOne = $("columns").children.length === 1;
    if (isOne) $("columns").append(column());
    else $("columns").lastElementChild.remove();
    $("compare").setAttribute("aria-pressed", String(isOne));
  });
  $("rollback").addEventListener("click", () => change("v1/catalogue/rollback"));
  const all = () => Promise.allSettled([refresh(), showClock(), showVersions(), showUsers()]);
  $("key").addEventListener("change", all);
  all();
  setInterval(refresh, REFRESH_MS);
  setInterval(() => showClock().catch(() => {}), REFRESH_MS);
}

start();
