// Pictures with what became of their visual tokens: what dropped ones cover is dark and grey, the rest has an outline.

import { element } from "./element.js";

const WIDTH = 560;
const HEIGHT = 640;
const OUTLINE = "#ffd640";
const EDGE = 2;
const DARK = "rgb(0 0 0 / 62%)";

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
  let area = 0;
  return boxes.map(([left, top, right, bottom]) => {
    const own = (right - left) * (bottom - top);
    area += own;
    return Math.floor(area - own / 2);
  });
}

// All pictures, each with a button that removes it. tokens: {boxes, pictures, kept}, or null before an answer.
export function showPictures(place, pictures, tokens, onRemove) {
  const figures = pictures.map((picture, index) => figure(picture, tokens && ofPicture(tokens, index), onRemove));
  place.replaceChildren(...figures);
}

// Draws again over the canvases that are there.
export function redrawPictures(place, pictures, tokens) {
  pictures.forEach((picture, index) => {
    const panels = place.children[index].querySelector(".panels");
    panels.replaceChildren(...panelsOf(picture, ofPicture(tokens, index)));
  });
}

function ofPicture({ boxes, pictures, kept }, index) {
  const tokens = pictures.flatMap((picture, token) => (picture === index ? [token] : []));
  return { boxes: tokens.map((token) => boxes[token]), kept: tokens.map((token) => kept.has(token)) };
}

function figure(picture, tokens, onRemove) {
  const remove = element("button", { type: "button", "aria-label": `Remove ${picture.name}` }, "Remove");
  remove.addEventListener("click", () => onRemove(picture));
  const panels = element("div", { class: "panels" }, ...panelsOf(picture, tokens));
  return element("figure", {}, panels, element("figcaption", {}, element("span", {}, picture.name), remove));
}

function panelsOf(picture, tokens) {
  if (!picture.image) return [element("p", { class: "note" }, "This browser cannot show the picture.")];
  if (!tokens) return [panel(picture, WIDTH, [], [], "not asked about yet")];
  const cover = covers(tokens.boxes);
  const count = Math.max(0, ...cover) + 1;
  return Array.from({ length: count }, (_, index) => {
    const mine = cover.flatMap((one, token) => (one === index ? [token] : []));
    const kept = mine.map((token) => tokens.kept[token]);
    const name = count === 1 ? "" : index === 0 ? "tiles: " : "thumbnail: ";
    const caption = `${name}${kept.filter(Boolean).length} of ${mine.length} tokens kept`;
    const boxes = mine.map((token) => tokens.boxes[token]);
    const width = index === 0 ? WIDTH : WIDTH / 2;
    const drawn = panel(picture, width, boxes, kept, caption);
    return element("div", { class: "panel" }, drawn, element("p", { class: "note" }, caption));
  });
}

function panel(picture, width, boxes, kept, caption) {
  const { image } = picture;
  const scale = Math.min(width / image.width, HEIGHT / image.height);
  const canvas = element("canvas", { role: "img", "aria-label": `${picture.name}, ${caption}` });
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  drawTokens(canvas, image, boxes.filter((_, token) => kept[token]), kept.every(Boolean));
  return canvas;
}

// boxes: of kept tokens, x0 y0 x1 y1 in a picture whose sides are 1.
function drawTokens(canvas, image, boxes, isWhole) {
  const pen = canvas.getContext("2d");
  const { width, height } = canvas;
  const drawPicture = () => pen.drawImage(image, 0, 0, width, height);
  drawPicture();
  if (isWhole) return;
  pen.globalCompositeOperation = "saturation";
  pen.fillStyle = "black";
  pen.fillRect(0, 0, width, height);
  pen.globalCompositeOperation = "source-over";
  pen.fillStyle = DARK;
  pen.fillRect(0, 0, width, height);
  pen.fillStyle = OUTLINE;
  pen.fill(outline(boxes, width, height, EDGE));
  pen.save();
  pen.clip(outline(boxes, width, height, 0));
  drawPicture();
  pen.restore();
}

// Whole pixels, so that neighbours leave no seam.
function outline(boxes, width, height, edge) {
  const path = new Path2D();
  for (const [x0, y0, x1, y1] of boxes) {
    const [left, top, right, bottom] = [x0 * width, y0 * height, x1 * width, y1 * height].map(Math.round);
    path.rect(left - edge, top - edge, right - left + 2 * edge, bottom - top + 2 * edge);
  }
  return path;
}
