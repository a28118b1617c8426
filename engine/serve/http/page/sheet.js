// The contact sheet of a clip: every frame that was shown, with what became of its visual tokens.

import { canvasOf } from "./canvas.js";
import { bar, element } from "./element.js";
import { WIDTH } from "./frames.js";

// tokens: {boxes, times, kept} of a clip, each token's -> the same of each frame, or of each group of frames that became
// tokens together, in the order of their times.
export function byFrame({ boxes, times, kept }) {
  const groups = new Map();
  times.forEach(([from, to], token) => {
    const key = `${from} ${to}`;
    if (!groups.has(key)) groups.set(key, { from, boxes: [], kept: [] });
    groups.get(key).boxes.push(boxes[token]);
    groups.get(key).kept.push(kept[token]);
  });
  return [...groups.values()].sort((one, other) => one.from - other.from);
}

// What a sheet needs of a clip besides its tokens. seconds: of each frame that was shown; times: of each token.
// -> {seconds, frames}: of each group, and a canvas of its first, null if the browser has none.
export async function readGroups(clip, seconds, times) {
  const count = new Set(times.map(String)).size;
  const depth = Math.ceil(seconds.length / count); // the last group may have fewer
  const groups = Array.from({ length: count }, (_, index) => seconds.slice(index * depth, (index + 1) * depth));
  return { seconds: groups, frames: await clip.framesAt(groups.map(([first]) => first)) };
}

export function sheet(name, tokens) {
  const { seconds, frames } = tokens;
  const cells = byFrame(tokens).map((group, index) => cell(name, group, seconds[index], frames && frames[index]));
  return element("ol", { class: "sheet", "aria-label": `Frames of ${name}` }, ...cells);
}

function cell(name, { boxes, kept }, seconds, frame) {
  const count = kept.filter(Boolean).length;
  const caption = `${when(seconds)}: ${count} of ${kept.length} tokens kept`;
  const canvas = frame ? [canvasOf(frame, WIDTH, `${name} at ${caption}`, boxes, kept)] : [];
  const share = bar("bar share", count / kept.length);
  return element("li", {}, ...canvas, share, element("p", { class: "note" }, caption));
}

function when(seconds) {
  const [first, last] = [seconds[0], seconds.at(-1)].map((at) => at.toFixed(1));
  return first === last ? `${first} s` : `${first}–${last} s`;
}
