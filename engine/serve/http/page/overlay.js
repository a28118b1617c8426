// Pictures and clips with what became of their visual tokens.

import { canvasOf } from "./canvas.js";
import { element } from "./element.js";
import { isClip } from "./media.js";
import { readGroups, sheet } from "./sheet.js";

const WIDTH = 560;

// floor(V * ratio), at least 1 if there are any; with the same allowance for rounding as the engine.
export function numKept(visualTokens, ratio) {
  return Math.min(visualTokens, Math.max(1, Math.floor(visualTokens * ratio + 1e-9)));
}

// -> the places of the most important tokens; of equal ones, the first.
export function mostImportant(importance, count) {
  const ranked = importance.map((value, token) => [value, token]);
  ranked.sort((one, other) => other[0] - one[0] || one[1] - other[1]);
  return new Set(ranked.slice(0, count).map(([, token]) => token));
}

// -> of each token 0 if it covers the picture first, 1 if it covers it again (a thumbnail's), and so on.
export function covers(boxes) {
  const inside = (at) => Math.min(1, Math.max(0, at)); // some tokens lie beside their picture
  let area = 0;
  return boxes.map((box) => {
    const [left, top, right, bottom] = box.map(inside);
    const own = (right - left) * (bottom - top);
    area += own;
    return Math.floor(area - own / 2);
  });
}

// -> for each medium null, or of a clip what `readGroups` says. report: of an answer about them.
export function readClips(media, { clips, pictures, times }) {
  const start = media.length - clips.length; // pictures come first
  const read = (medium, index) =>
    readGroups(medium, clips[index - start].seconds, tokensOf(pictures, index).map((token) => times[token]));
  return Promise.all(media.map((medium, index) => (isClip(medium) ? read(medium, index) : null)));
}

// All of them, each with a button that removes it. tokens: null before an answer, else {boxes, pictures, times, kept} of
// visual tokens, and clips as `readClips` has them.
export function showMedia(place, media, tokens, onRemove) {
  const figures = media.map((medium, index) => figure(medium, tokens && ofMedium(tokens, index), onRemove));
  place.replaceChildren(...figures);
}

// Draws again over the canvases that are there.
export function redrawMedia(place, media, tokens) {
  media.forEach((medium, index) => {
    const panels = place.children[index].querySelector(".panels");
    panels.replaceChildren(...panelsOf(medium, ofMedium(tokens, index)));
  });
}

// -> the places of the tokens of one picture or clip.
const tokensOf = (pictures, index) => pictures.flatMap((picture, token) => (picture === index ? [token] : []));

function ofMedium({ boxes, pictures, times, kept, clips }, index) {
  const tokens = tokensOf(pictures, index);
  const mine = { boxes: tokens.map((token) => boxes[token]), kept: tokens.map((token) => kept.has(token)) };
  return clips[index] ? { ...mine, ...clips[index], times: tokens.map((token) => times[token]) } : mine;
}

function figure(medium, tokens, onRemove) {
  const remove = element("button", { type: "button", "aria-label": `Remove ${medium.name}` }, "Remove");
  remove.addEventListener("click", () => onRemove(medium));
  const panels = element("div", { class: "panels" }, ...panelsOf(medium, tokens));
  return element("figure", {}, panels, element("figcaption", {}, element("span", {}, medium.name), remove));
}

function panelsOf(medium, tokens) {
  const kind = isClip(medium) ? "clip" : "picture";
  const missing = medium.image ? [] : [element("p", { class: "note" }, `This browser cannot show the ${kind}.`)];
  if (tokens && isClip(medium)) return [...missing, sheet(medium.name, tokens)];
  if (!medium.image) return missing;
  return tokens ? coversOf(medium, tokens) : [panel(medium, WIDTH, [], [], "not asked about yet")];
}

// A panel of the finest cover, and smaller ones of the others.
function coversOf(medium, tokens) {
  const cover = covers(tokens.boxes);
  const members = Array.from({ length: Math.max(0, ...cover) + 1 }, () => []);
  cover.forEach((one, token) => members[one].push(token));
  members.sort((one, other) => other.length - one.length);
  return members.map((mine, index) => {
    const kept = mine.map((token) => tokens.kept[token]);
    const name = members.length === 1 ? "" : index === 0 ? "tiles: " : "thumbnail: ";
    const caption = `${name}${kept.filter(Boolean).length} of ${mine.length} tokens kept`;
    const boxes = mine.map((token) => tokens.boxes[token]);
    const drawn = panel(medium, index === 0 ? WIDTH : WIDTH / 2, boxes, kept, caption);
    return element("div", { class: "panel" }, drawn, element("p", { class: "note" }, caption));
  });
}

const panel = ({ image, name }, width, boxes, kept, caption) =>
  canvasOf(image, width, `${name}, ${caption}`, boxes, kept);
