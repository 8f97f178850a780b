/** Live metrics, and versions of the catalogue and of the model with activate and roll back. */

import { $, call, element, post } from "./call.js";

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

/** Shows the metrics of now. */
export async function showMetrics() {
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
    say($("health"), total(text, "sigma_store_up") ? "the service answers" : "the store does not answer");
  } catch (error) {
    say($("health"), `the service does not answer: ${error.message}`);
  }
}

/** Changes a text only if it is another one: a screen reader reads each change. */
function say(place, text) {
  if (place.textContent !== text) place.textContent = text;
}

function button(text, name, path, note) {
  const made = element("button", text);
  made.type = "button";
  made.setAttribute("aria-label", name);
  made.addEventListener("click", () => change(path, note));
  return made;
}

/** Calls what changes the active version or model, and says what came of it. */
async function change(path, note) {
  note.textContent = "loading beside the active one …";
  try {
    const found = await post(path);
    note.textContent = `${found.name} is active`;
    await showVersions();
  } catch (error) {
    note.textContent = error.message;
    if (error.status === 401 || error.status === 403) $("key").focus();
  }
}

function line(cells, one, kind, path, note) {
  const row = element("tr"), state = element("td");
  if (one.is_active) state.append(element("span", "active", "active"));
  else state.append(button("Activate", `Activate ${kind} ${one.name}`, path, note));
  const [first, ...others] = cells, head = element("th", first);
  head.scope = "row";
  row.append(head, ...others.map((text) => element("td", text)), state);
  return row;
}

/** The time of a replayed log; nothing where the service has the time of its machine. */
export async function showClock() {
  const clock = await call("v1/clock");
  $("clock").hidden = !clock.is_replay;
  if (!clock.is_replay) return;
  const when = new Date(clock.now * 1000).toISOString().slice(0, 16).replace("T", " ");
  $("clock").textContent = `replayed log: ${when}${clock.is_over ? ", its end" : `, ${clock.speed} times as fast`}`;
}

/** Shows all versions and models; returns those that may answer a preview. */
export async function showVersions() {
  const [{ versions }, { models }] = await Promise.all([call("v1/catalogue"), call("v1/models")]);
  $("versions").replaceChildren(...versions.map((one) => line(
    [one.name, one.comment], one, "version", `v1/catalogue/versions/${encodeURIComponent(one.name)}/activate`, $("versions-note"),
  )));
  $("models").replaceChildren(...models.map((one) => line(
    [one.name, one.model.slice(0, 8), one.items.toLocaleString("en")], one, "model", `v1/models/${encodeURIComponent(one.name)}/activate`, $("models-note"),
  )));
  document.dispatchEvent(new CustomEvent("versions", { detail: { versions, models } }));
}

export function start() {
  $("rollback").addEventListener("click", () => change("v1/catalogue/rollback", $("versions-note")));
  $("rollback-model").addEventListener("click", () => change("v1/models/rollback", $("models-note")));
}
