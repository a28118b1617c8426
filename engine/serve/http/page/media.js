// Pictures and clips that are dropped, pasted or chosen.

import { drawn, firstFrame, framesReader } from "./frames.js";

const WIDEST = 1120; // pixels of what is kept to draw from
const CLIP_NAME = /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|m2ts|flv|ogv)$/i; // systems do not know the types of all

// What the server is told, so that it sees what a browser shows.
const AS_SHOWN = { auto_orient: true, background: [255, 255, 255] };

export const isClip = (medium) => medium.framesAt !== null;

// Of a question about these; nothing reads it where there is no picture.
export const asShown = (media) => (media.every(isClip) ? {} : AS_SHOWN);

// Calls onFiles with the files, wherever they come from; `is-over` marks the place while something is dragged.
export function takeFiles(choose, place, onFiles) {
  choose.addEventListener("change", () => {
    onFiles([...choose.files]);
    choose.value = "";
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) event.preventDefault();
    onFiles(files);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.classList.add("is-over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) place.classList.remove("is-over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    place.classList.remove("is-over");
    onFiles([...event.dataTransfer.files]);
  });
}

// -> {name, url, image, framesAt}: a data URL, and what to draw, null if the browser cannot. framesAt: of a clip, as
// `framesReader` has it, null of a picture. Throws Error for another file.
export async function readMedium(file) {
  const isVideo = file.type.startsWith("video/") || CLIP_NAME.test(file.name);
  if (!isVideo && file.type && !file.type.startsWith("image/"))
    throw new Error(`${file.name} is no picture and no clip; choose another`);
  const [url, image] = await Promise.all([dataUrl(file), isVideo ? firstFrame(file, WIDEST) : shown(file)]);
  return { name: file.name || (isVideo ? "clip" : "picture"), url, image, framesAt: isVideo ? framesReader(file) : null };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read (${reader.error.message}); choose another`));
    reader.readAsDataURL(file);
  });
}

async function shown(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return null;
  const canvas = drawn(bitmap, bitmap.width, bitmap.height, WIDEST);
  bitmap.close();
  return canvas;
}
