// A picture with its visual tokens: what dropped ones cover is dark and grey, the rest has an outline.

import { element } from "./element.js";

const HEIGHT = 640;
const OUTLINE = "#ffd640";
const EDGE = 2;
const DARK = "rgb(0 0 0 / 62%)";

// boxes, kept: of its visual tokens.
export function canvasOf(image, width, label, boxes, kept) {
  const scale = Math.min(width / image.width, HEIGHT / image.height);
  const canvas = element("canvas", { role: "img", "aria-label": label });
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
