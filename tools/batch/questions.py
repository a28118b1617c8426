"""The miniature pair's engine, and a file of questions about its scenes."""

import json
from pathlib import Path
from typing import Any

from engine.build.builder import build_pair
from engine.config import BuildConfig
from tools.demo import PAIR
from tools.miniature.questions import exam, picture
from tools.miniature.scenes import Split

EACH = 4
"""Questions about one scene, side by side."""


def build_engine(directory: Path) -> Path:
    """Raises EngineError."""
    build_pair(BuildConfig(PAIR / "small", PAIR / "large", directory, max_tokens=256))
    return directory


def write_questions(path: Path, count: int) -> Path:
    """Of both forms in turn; pictures lie beside it, for every few questions the same one."""
    with path.open("w", encoding="utf-8") as file:
        for place, (seed, question) in enumerate(exam(Split.TEST, count)):
            if place % EACH == 0:
                name = f"{seed}.png"
                picture(seed).save(path.with_name(name))
            file.write(json.dumps(line(place, name, question.text)) + "\n")
    return path


def line(place: int, image: str, text: str) -> dict[str, Any]:
    if place % 2:
        return {"id": place, "image": image, "question": text}
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    body = {"model": "engine", "messages": [{"role": "user", "content": content}]}
    return {"custom_id": str(place), "method": "POST", "url": "/v1/chat/completions", "body": body}
