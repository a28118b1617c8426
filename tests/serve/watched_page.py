"""A page of `sgl serve` in a browser as tests use it, and what they ask of it in the browser's own language."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.cli.draw_pruning import covers
from engine.config import SamplingConfig
from engine.runtime.answer import Answer
from tools.page_browser import PATIENCE

QUESTION = "What is it?"
SAMPLING = SamplingConfig(max_new_tokens=6)
"""Of what the tests ask."""

DROP = """([data, name, type, kind]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name, { type }));
  const options = { bubbles: true, cancelable: true };
  const place = document.getElementById("drop");
  if (kind === "paste") place.dispatchEvent(new ClipboardEvent(kind, { ...options, clipboardData: transfer }));
  else for (const step of ["dragover", "drop"])
    place.dispatchEvent(new DragEvent(step, { ...options, dataTransfer: transfer }));
}"""
PIXELS = """([panel, points]) => {
  const canvas = document.querySelectorAll("canvas")[panel];
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return points.map(([x, y]) => {
    const start = 4 * (Math.floor(y * canvas.height) * canvas.width + Math.floor(x * canvas.width));
    return [...data.slice(start, start + 3)];
  });
}"""
CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const parts = numbers(colour).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const elements = [...document.body.querySelectorAll("*")].filter((one) => one.checkVisibility() && !one.disabled);
  return elements.filter((one) => hasText(one) || one.matches("textarea")).map((element) => {
    const [one, other] = [light(getComputedStyle(element).color), light(behind(element))];
    return [element.outerHTML.slice(0, 80), (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)];
  });
}"""
NAMELESS = """() => [...document.querySelectorAll("input, textarea, button, canvas, output")]
  .filter((one) => !(one.labels?.length || one.textContent.trim() || one.ariaLabel))
  .map((one) => one.outerHTML)"""
FOCUSABLE = """() => [...document.querySelectorAll("input, textarea, button")]
  .filter((one) => one.checkVisibility() && !one.disabled)
  .map((one) => one.id || one.ariaLabel)"""
HOLD = """() => {
  const ask = window.fetch;
  window.fetch = async (path, options) => {
    const response = await ask(path, options);
    if (!path.endsWith("completions")) return response;
    const stopped = new Promise((_, reject) =>
      options.signal.addEventListener("abort", () => reject(options.signal.reason)));
    stopped.catch(() => {});
    let count = 0;
    const hold = { transform: (chunk, to) => (count++ ? stopped : to.enqueue(chunk)), flush: () => stopped };
    return new Response(response.body.pipeThrough(new TransformStream(hold)), response);
  };
}"""


@dataclass(frozen=True)
class Picture:
    data: bytes
    answer: Answer
    """Of the pipeline, to the question about it."""

    def centres(self, cover: int) -> list[list[float]]:
        boxes = self.answer.boxes[covers(self.answer.boxes) == cover]
        return np.stack([boxes[:, 0::2].mean(axis=1), boxes[:, 1::2].mean(axis=1)], axis=1).astype(float).tolist()

    def kept(self, cover: int, tokens: np.ndarray) -> list[bool]:
        is_kept = np.isin(np.arange(self.answer.visual_tokens), tokens)
        return is_kept[covers(self.answer.boxes) == cover].tolist()


@dataclass
class Watched:
    """A page, and what its console said."""

    page: Any
    errors: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    def drop(self, data: bytes, name: str = "scene.png", type: str = "image/png", kind: str = "drop") -> None:
        self.page.evaluate(DROP, [base64.b64encode(data).decode(), name, type, kind])

    def ask(self, question: str) -> None:
        self.page.get_by_role("textbox", name="Question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()

    def answer(self, pane: str = "guided") -> str:
        """Once it is complete."""
        self.page.locator(f"#{pane} table").wait_for()
        return self.page.locator(f"#{pane} .text").text_content()

    def pixels(self, panel: int, points: list[list[float]]) -> np.ndarray:
        return np.array(self.page.evaluate(PIXELS, [panel, points]), float)


@contextmanager
def watch(opened: Any, address: str) -> Iterator[Watched]:
    """The page at an address that serves `pair`. Whoever expects errors takes them away."""
    with opened.new_context() as context:
        context.set_default_timeout(PATIENCE)
        watched = Watched(context.new_page())
        watched.page.on("console", lambda said: watched.errors.append(said.text) if said.type == "error" else None)
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        watched.page.on("request", lambda request: watched.urls.append(request.url))
        watched.page.goto(address)
        watched.page.get_by_text("pair", exact=True).wait_for()
        yield watched
        assert not watched.errors
        assert all(url.startswith((address, "data:", "blob:")) for url in watched.urls)
