/** A recommended item as a card that says how it came about. */

import { element, percent } from "./call.js";

const SHOWN = 5; // features; a button shows the others

/** The row of a table: a name, a value, what it means. */
function row(name, value, meaning) {
  const made = element("tr"), head = element("th", name);
  head.scope = "row";
  made.append(head, element("td", value, "number"), element("td", meaning));
  return made;
}

/** The steps from the prefix to the probability. */
function steps(item, labels) {
  const why = item.explanation, table = element("table", "", "steps"), body = element("tbody");
  const label = labels.get(why.codes.join("-"));
  const inBeam = item.details.prefix > 0;
  const prefix = why.codes.length ? `SID ${why.codes.join("-")}` : "in no beam";
  body.append(
    row("prefix", prefix, inBeam ? `no. ${item.details.prefix} of the beams${label ? `: ${label}` : ""}` : "the item head alone scores it"),
    row("beam score", why.beam_score.toFixed(2), inBeam ? `the prefix has ${percent(Math.exp(why.beam_score))}` : "all items together"),
    row("cosine", item.details.cosine.toFixed(3), "of the query and the item's vector"),
    row("sigma", why.sigma.toFixed(2), "how much cosines count beside beams"),
    row("in the prefix", percent(why.in_prefix), inBeam ? "its share among the prefix's items" : "its share among all items"),
    row("network", percent(why.network), "prefix times share: what the network says"),
    row("features", (why.score > 0 ? "+" : "") + why.score.toFixed(2), `to log P; then ${percent(why.summed)} of all items`),
  );
  if (Math.abs(why.ranked / why.summed - 1) > 1e-3) {
    body.append(row("interactions", percent(why.ranked), "features read together by a small network"));
  }
  body.append(row("probability", percent(why.probability), "calibrated: so many of such items are taken"));
  if (why.place !== item.shown) body.append(row("place", `${why.place} → ${item.shown}`, "by the model, then with rules and filters"));
  table.append(body);
  return table;
}

/** How many times: ×3.1, ÷20, ×10^12. */
function times(power) {
  const sign = power >= 0 ? "×" : "÷", size = Math.abs(power);
  return size < Math.log(1e4) ? `${sign}${Number(Math.exp(size).toPrecision(2))}` : `${sign}10^${Math.round(size / Math.LN10)}`;
}

/** By how much a feature moved log P, against a typical item. */
const effect = (one) => one.contribution - one.typical + one.interaction;

/** A feature: its words, and a bar that goes right if it raised the probability. */
function feature(one, widest) {
  const made = element("li"), bar = element("span", "", "swing"), filled = element("span"), size = effect(one);
  filled.style.width = `${50 * Math.min(1, Math.abs(size) / widest)}%`;
  filled.className = size > 0 ? "more" : "less";
  bar.setAttribute("aria-hidden", "true");
  bar.append(filled);
  const sum = `value ${one.value.toFixed(2)} × weight ${one.weight.toFixed(2)} = ${one.contribution.toFixed(2)}, typical ${one.typical.toFixed(2)}`;
  const together = Math.abs(one.interaction) >= 0.005 ? `; with other features ${times(one.interaction)}` : "";
  made.append(element("b", one.feature.replaceAll("_", " ")), element("span", times(size), "times"), bar, element("span", one.words, "words"), element("small", sum + together));
  return made;
}

function features(list) {
  const widest = Math.max(...list.map((one) => Math.abs(effect(one))), 1e-9);
  const made = element("ul", "", "features");
  made.append(...list.slice(0, SHOWN).map((one) => feature(one, widest)));
  const rest = list.slice(SHOWN);
  if (!rest.length) return [made];
  const more = element("button", `${rest.length} features that mattered less`);
  more.type = "button";
  more.addEventListener("click", () => {
    const added = rest.map((one) => feature(one, widest));
    made.append(...added);
    added[0].tabIndex = -1;
    added[0].focus();
    more.remove();
  });
  return [made, more];
}

/**
 * The card of an item.
 * labels: label of each prefix by its codes. open: called with the codes when the reasons open.
 */
export function card(item, place, labels, open, elsewhere) {
  const made = element("li");
  made.dataset.item = item.item_id;
  made.append(element("b", `${place}. ${item.title}`));
  const facts = [item.item_id];
  if (item.probability !== null) {
    const bar = element("div", "", "bar"), filled = element("span");
    filled.style.width = `${Math.min(100, 100 * item.probability)}%`;
    bar.setAttribute("aria-hidden", "true");
    bar.append(filled);
    made.append(bar);
    facts.push(`probability ${percent(item.probability)}`);
  }
  if (elsewhere !== undefined) facts.push(elsewhere ? `no. ${elsewhere} on the other side` : "not on the other side");
  made.append(element("p", [...facts, ...item.reasons].join(" · "), "facts"));
  if (item.explanation) {
    const reasons = element("details", "", "reasons");
    const summary = element("summary", "How it came about");
    summary.append(element("span", `: ${item.title}`, "hidden"));
    reasons.append(summary, steps({ ...item, shown: place }, labels));
    if (item.explanation.features.length) {
      reasons.append(element("p", "What sets it apart; × or ÷: its odds against those of a typical item", "facts"), ...features(item.explanation.features));
    }
    reasons.addEventListener("toggle", () => open(reasons.open ? item.explanation.codes : null));
    made.append(reasons);
  } else if (item.details.cosine !== undefined) {
    const prefix = item.details.prefix > 0 ? `prefix no. ${item.details.prefix} of the beams` : "in no beam";
    made.append(element("p", `${prefix} · cosine ${item.details.cosine.toFixed(3)}`, "facts"));
  }
  return made;
}
