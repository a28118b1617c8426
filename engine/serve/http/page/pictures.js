// Pictures that are dropped, pasted or chosen.

const WIDEST = 1120; // pixels of what is kept to draw from

// What the server is told, so that it sees what a browser shows.
export const AS_SHOWN = { auto_orient: true, background: [255, 255, 255] };

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

// -> {name, url, image}: a data URL, and what to draw, null if the browser cannot. Throws Error for another file.
export async function readPicture(file) {
  if (file.type && !file.type.startsWith("image/")) throw new Error(`${file.name} is no picture; choose another`);
  const [url, image] = await Promise.all([dataUrl(file), shown(file)]);
  return { name: file.name || "picture", url, image };
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
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, WIDEST / bitmap.width);
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}
