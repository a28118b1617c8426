// Frames of clips, as the browser decodes them.

export const WIDTH = 240; // pixels of a frame on a contact sheet
const BEHIND = 0.001; // seconds: times are rounded, and just before a frame is the one before it
const MOST = 20_000; // milliseconds that one frame may take
const PATIENCE = 500; // milliseconds; a page in the background is never told that a frame is shown

// -> a canvas with the first frame, or null if the browser cannot show the clip.
export async function firstFrame(file, widest) {
  const frames = await readFrames(file, [0], widest);
  return frames && frames[0];
}

// -> a function of the seconds of frames, counted from the first frame on, to canvases of them, or null if the browser
// cannot show the clip. What was read last is kept.
export function framesReader(file) {
  let key = null;
  let frames = null;
  return (seconds) => {
    if (key !== seconds.join()) [key, frames] = [seconds.join(), readFrames(file, seconds, WIDTH)];
    return frames;
  };
}

// -> a canvas with a source as large as it is, or smaller; what is seen through is white.
export function drawn(source, width, height, widest) {
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, widest / width);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function readFrames(file, seconds, widest) {
  const url = URL.createObjectURL(file);
  const video = document.createElement("video");
  video.muted = true;
  video.preload = "auto";
  try {
    const start = await shownAt(video, "loadeddata", () => (video.src = url));
    if (!video.videoWidth) return null; // sound only
    const frames = [];
    for (const at of seconds) {
      await shownAt(video, "seeked", () => (video.currentTime = start + at + BEHIND));
      frames.push(drawn(video, video.videoWidth, video.videoHeight, widest));
    }
    return frames;
  } catch {
    return null;
  } finally {
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(url);
  }
}

// Starts what ends with an event, and waits until its frame is shown -> when it is seen, on the clip's own clock. Throws
// where that takes too long.
async function shownAt(video, event, start) {
  const shown = new Promise((resolve) => {
    video.requestVideoFrameCallback?.((_, { mediaTime }) => resolve(mediaTime));
  });
  await new Promise((resolve, reject) => {
    video.addEventListener(event, resolve, { once: true });
    video.addEventListener("error", () => reject(video.error), { once: true });
    setTimeout(() => reject(new Error("no frame came")), MOST);
    start();
  });
  const late = new Promise((resolve) => setTimeout(() => resolve(video.currentTime), PATIENCE));
  return Promise.race([shown, late]);
}
