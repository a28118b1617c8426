// How an answer came about, in words and bars. What a report does not have is missing in it.

import { bar, element, milliseconds, percent } from "./element.js";

const LARGE_VISION = "large vision";

// What the threshold is compared with lies between these.
export function scale(decision) {
  if (decision.criterion !== "entropy") return [0, 1];
  return [Math.floor(Math.min(-1, decision.value, decision.exit_threshold)), 0];
}

// -> true, false, or null where it is not known: without the consistency, the score is only known within bounds.
export function wouldExit(decision, threshold) {
  const bounds = { decision_score: [decision.confidence / 2, (decision.confidence + 1) / 2], consistency: [0, 1] };
  const isBounded = decision.consistency == null && decision.criterion in bounds;
  const [lowest, highest] = isBounded ? bounds[decision.criterion] : [decision.value, decision.value];
  if (threshold <= lowest) return true;
  return threshold > highest ? false : null;
}

// The score as a bar, with a mark at the threshold, and what follows from both.
export function showDecision(place, report, threshold) {
  const { decision } = report;
  if (!decision) return place.replaceChildren(element("p", {}, "Early exit was off."));
  const [low, high] = scale(decision);
  const part = (value) => (value - low) / (high - low);
  const name = decision.criterion.replace("_", " ");
  const said = `${name} ${decision.value.toFixed(3)}, threshold ${shortNumber(threshold)}`;
  const score = bar("bar score", part(decision.value), bar("mark", part(threshold)));
  score.setAttribute("role", "img");
  score.setAttribute("aria-label", said);
  return place.replaceChildren(
    element("p", {}, said),
    score,
    element("p", { class: "verdict" }, verdict(report, threshold)),
    element("p", { class: "note" }, parts(decision)),
  );
}

function parts({ confidence, consistency }) {
  const agrees = consistency == null ? "not computed, it could change nothing" : consistency.toFixed(3);
  return `confidence ${confidence.toFixed(3)}, consistency ${agrees}`;
}

function verdict({ decision, early_exit: didExit }, threshold) {
  const isSure = decision.value >= decision.exit_threshold;
  if (isSure && !didExit) return "The small model was cut off, and what is cut off never is the answer.";
  const exits = wouldExit(decision, threshold);
  if (exits === null) return "At this threshold the consistency decides, which was not computed; ask again.";
  if (exits && didExit) return "The small model is sure: its answer is the answer.";
  if (exits) return "At this threshold the small model's answer would have been returned.";
  return didExit ? "At this threshold the large model would have answered." : "Not sure: the large model answers.";
}

// Who answered, and what it looked at.
export function showWho(place, report, finish) {
  const seen = `${report.visual_tokens_kept} of ${report.visual_tokens} visual tokens`;
  const from = report.prune_layer == null ? "" : ` from layer ${report.prune_layer} on`;
  const who = element("strong", {}, `${report.answered_by} model`);
  const lines = [element("p", {}, "Answered by the ", who, `, from ${seen}${from}.`)];
  if (report.answered_by === "large" && report.small_text != null)
    lines.push(element("p", {}, "The small model said: ", element("q", {}, report.small_text)));
  if (finish === "length") lines.push(element("p", { class: "note" }, "It ends at the limit of its tokens."));
  place.replaceChildren(...lines);
}

// The time by stage. longest: seconds of the longest bar.
export function showStages(place, { seconds }, longest) {
  const part = (value) => (longest ? value / longest : 0);
  const row = ([stage, value]) => stageRow(stage, value, bar(`bar ${stage.split(" ")[0]}`, part(value)));
  const rows = [...Object.entries(seconds).map(row), stageRow("together", total(seconds))];
  place.replaceChildren(element("table", {}, element("caption", {}, "Time by stage"), element("tbody", {}, ...rows)));
}

function stageRow(name, seconds, ...bars) {
  const head = element("th", { scope: "row" }, name);
  return element("tr", {}, head, element("td", { class: "time" }, ...bars), element("td", {}, milliseconds(seconds)));
}

export const longestStage = (...reports) => Math.max(0, ...reports.flatMap((report) => Object.values(report.seconds)));

const total = (seconds) => Object.values(seconds).reduce((sum, value) => sum + value, 0);

// What guidance and early exit saved against the large model alone.
export function showSaved(place, guided, alone, isSameText) {
  const [mine, other] = times(guided.seconds, alone.seconds);
  const less = 1 - mine / other;
  const time = less >= 0 ? `${percent(less)} saved` : `${percent(-less)} more`;
  place.replaceChildren(
    element("h3", {}, "Saved"),
    element("p", {}, savedTokens(guided, alone)),
    element("p", {}, `Time: ${milliseconds(mine)} against ${milliseconds(other)}, ${time}.`),
    element("p", {}, isSameText ? "Both answers are the same." : "The answers differ."),
    element("p", { class: "note" }, "Large vision counts alike in both: the second run finds its features ready."),
  );
}

// The large model's vision as long in both as where it ran.
function times(guided, alone) {
  const vision = Math.max(guided[LARGE_VISION] ?? 0, alone[LARGE_VISION] ?? 0);
  const whole = (seconds) => total(seconds) + (LARGE_VISION in seconds ? vision - seconds[LARGE_VISION] : 0);
  return [whole(guided), whole(alone)];
}

function savedTokens(guided, alone) {
  if (guided.answered_by === "small")
    return `Visual tokens: the large model needed none of ${alone.visual_tokens}, 100 % saved.`;
  const kept = `${guided.visual_tokens_kept} of ${guided.visual_tokens}`;
  if (guided.prune_layer == null) return `Visual tokens: ${kept}, none saved.`;
  const saved = percent(1 - guided.average_retention);
  return `Visual tokens: ${kept} from layer ${guided.prune_layer} on, over all layers ${saved} saved.`;
}

export const shortNumber = (value) => String(Number(value.toFixed(3)));
