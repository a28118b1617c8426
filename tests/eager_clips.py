"""Clips for tests, and what transformers' own processors and eager models make of them, family by family."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.runtime.clips import ClipFrames
from tests import saved_internvl, saved_llava_onevision, saved_qwen2_vl

SECONDS = (0.0, 0.4, 1.1, 1.5, 2.6, 3.0, 4.0)


def noise(width: int, height: int, number: int) -> Image.Image:
    pixels = np.random.default_rng(number * 10**6 + width * 1000 + height).integers(
        0, 256, (height, width, 3), np.uint8
    )
    return Image.fromarray(pixels)


def clip(frames: int, width: int = 50, height: int = 30, first: int = 0) -> ClipFrames:
    """Every pixel by itself, and frames at uneven times."""
    pictures = tuple(noise(width, height, first + index) for index in range(frames))
    return ClipFrames(pictures, SECONDS[:frames])


@dataclass(frozen=True)
class Inputs:
    """What an eager model is given of one user turn, and its features [F,C] in the order of the prompt."""

    model: dict[str, torch.Tensor]
    features: np.ndarray
    positions: np.ndarray | None = None
    """int64 [S,3]"""


@dataclass
class Published:
    """M-RoPE as QwenLM's `rope2d.py` lays a prompt out: [3,S] and on from the largest."""

    parts: list[np.ndarray] = field(default_factory=list)

    def next(self) -> int:
        return max((int(part.max()) + 1 for part in self.parts[-1:]), default=0)

    def text(self, length: int) -> None:
        if length:
            self.parts.append(np.tile(np.arange(length) + self.next(), (3, 1)))

    def visual(self, times: int, rows: int, columns: int, seconds: float | None, steps: int = 1) -> None:
        """seconds: between two times, each of so many steps of positions; None: one step from time to time."""
        time = torch.arange(times).view(-1, 1).expand(-1, rows * columns)
        time = (time * seconds * steps if seconds is not None else time).long().flatten()
        row = torch.arange(rows).view(1, -1, 1).expand(times, -1, columns).flatten()
        column = torch.arange(columns).view(1, 1, -1).expand(times, rows, -1).flatten()
        self.parts.append(torch.stack([time, row, column]).numpy() + self.next())


@torch.no_grad()
def internvl(
    saved: saved_internvl.Saved, images: Sequence[Image.Image], clips: Sequence[ClipFrames], question: str
) -> Inputs:
    saved.model.model.language_model.rotary_emb.max_seq_len_cached = 0
    processor, pixels, text = saved.processor.image_processor, [], ""
    for image in images:
        tiles = processor([image], crop_to_patches=True, return_tensors="pt")["pixel_values"]
        pixels.append(tiles)
        text += f"<img>{'<IMG_CONTEXT>' * 4 * len(tiles)}</img>\n"
    for one in clips:
        pixels.append(processor(list(one.pictures), crop_to_patches=False, return_tensors="pt")["pixel_values"])
        lines = [f"Frame{i + 1}: <img>{'<IMG_CONTEXT>' * 4}</img>" for i in range(len(one.pictures))]
        text += "\n".join(lines) + "\n"
    text = f"<|im_start|>user\n{text}{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = saved.processor.tokenizer(text, return_tensors="pt")
    values = torch.cat(pixels)
    features = saved.model.get_image_features(values).pooler_output.reshape(-1, 48)
    return Inputs({**ids, "pixel_values": values}, features.numpy())


@torch.no_grad()
def qwen(
    saved: saved_qwen2_vl.Saved, images: Sequence[Image.Image], clips: Sequence[ClipFrames], question: str
) -> Inputs:
    merged, values, features, layout, text = saved_qwen2_vl.MERGED, {}, [], Published(), ""
    vision, visual = saved.model.config.vision_config, []
    if images:
        values = dict(saved.processor(images=list(images), return_tensors="pt"))
        for grid in values["image_grid_thw"]:
            tokens = int(grid.prod()) // merged**2
            text += f"<|vision_start|>{'<|image_pad|>' * tokens}<|vision_end|>"
            visual.append((tokens, 1, *(int(side) // merged for side in grid[1:]), None))
        features += saved.model.model.get_image_features(**_renamed(values, "image")).pooler_output
    grids, pixels = [], []
    for one in clips:
        frames = [saved.processor(images=[frame], return_tensors="pt") for frame in one.pictures]
        frames += frames[-1:] * (len(frames) % 2)
        _, rows, columns = (int(side) for side in frames[0]["image_grid_thw"][0])
        patches = [frame["pixel_values"].reshape(rows * columns, 3, 2, vision.patch_size, -1) for frame in frames]
        for first, second in zip(patches[::2], patches[1::2], strict=True):
            pixels.append(torch.stack([first[:, :, 0], second[:, :, 1]], dim=2).reshape(rows * columns, -1))
        grids.append([len(frames) // 2, rows, columns])
        tokens = len(frames) // 2 * rows * columns // merged**2
        text += f"<|vision_start|>{'<|video_pad|>' * tokens}<|vision_end|>"
        seconds = 2 / one.rate() if hasattr(vision, "tokens_per_second") else None
        steps = getattr(vision, "tokens_per_second", 1)
        visual.append((tokens, len(frames) // 2, rows // merged, columns // merged, seconds, steps))
    if clips:
        values |= {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.tensor(grids)}
        features += saved.model.model.get_video_features(values["pixel_values_videos"], values["video_grid_thw"])[
            "pooler_output"
        ]
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{text}{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = torch.tensor([saved.tokenizer(text)["input_ids"]])
    kinds = (ids == saved.model.config.image_token_id).int() + 2 * (ids == saved.model.config.video_token_id).int()
    start, is_visual = 0, kinds[0].numpy() > 0
    for tokens, *grid in visual:
        first = start + int(np.argmax(is_visual[start:]))
        layout.text(first - start)
        layout.visual(*grid)
        start = first + tokens
    layout.text(ids.shape[1] - start)
    positions = np.concatenate(layout.parts, axis=1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    saved.model.model.rope_deltas = None
    turns = torch.from_numpy(positions)[:, None]
    return Inputs(values | given | {"position_ids": turns}, np.concatenate(features), positions.T)


@torch.no_grad()
def llava(
    saved: saved_llava_onevision.Saved, images: Sequence[Image.Image], clips: Sequence[ClipFrames], question: str
) -> Inputs:
    processor, side = saved.processor.image_processor, -(-saved_llava_onevision.GRID // 2)
    values: dict[str, torch.Tensor] = {}
    features, text, films = [], "", []
    if images:
        still = saved.inputs(list(images), "")
        values = {name: still[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
        found = saved.model.model.get_image_features(**values).pooler_output
        features += found
        text += "".join(f"{'<image>' * len(part)}\n" for part in found)
    for one in clips:
        tiles = [processor([frame], return_tensors="pt")["pixel_values"][0][0] for frame in one.pictures]
        frames = torch.stack(tiles)[None]
        films.append(frames)
        features += saved.model.model.get_video_features(frames, **_layer(saved)).pooler_output
        text += f"{'<video>' * (len(tiles) * side**2 + 1)}\n"
    if films:
        values["pixel_values_videos"] = torch.cat(films)
    text = f"<|im_start|>user\n{text}{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = saved.processor.tokenizer(text, return_tensors="pt")
    return Inputs({**ids, **values}, np.concatenate(features))


def _layer(saved: saved_llava_onevision.Saved) -> dict[str, Any]:
    config = saved.model.config
    return {
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }


def _renamed(values: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    return {"pixel_values": values["pixel_values"], f"{kind}_grid_thw": values[f"{kind}_grid_thw"]}
