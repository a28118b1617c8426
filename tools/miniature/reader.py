"""What a model is given: pixels and token ids exactly as the engine's."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.families import by_name
from engine.families.base import Pieces
from engine.families.internvl2 import prompt as internvl2
from engine.families.qwen2_vl import prompt as qwen2_vl
from engine.model_config import NativeSizeConfig
from engine.runtime.prompt import token_places
from tools.miniature.scenes import SLOT, SLOTS, Item
from tools.miniature.vocabulary import END, SPECIAL_TOKENS, make_tokenizer, token_id

NOWHERE = Path()
"""A checkpoint whose files are not read."""
FAMILIES = {"internvl_chat": "internvl2", "qwen2_vl": "qwen2_vl"}
"""`model_type` -> the engine's name."""
PICTURE_ENDS = {"internvl_chat": internvl2.IMAGE_END, "qwen2_vl": qwen2_vl.TEMPLATE.picture.end}

SYSTEM_MESSAGES = {"internvl_chat": "", "qwen2_vl": "You are a helpful"}
"""But for words that are said elsewhere, too."""


class Reader:
    """Of a model with this `config.json`.

    prefix: ids of the prompt up to the picture's end. places: int64 [S,3], the position of each (time, row, column, of
    which a model with plain positions has one, three times). next: position of what follows. system: ids of the message
    that the template brings along.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        layout = config["model_type"]
        self.family = by_name(FAMILIES[layout])
        self.config = self.family.read_config(NOWHERE, config)
        self.is_native = isinstance(self.config.tiling, NativeSizeConfig)
        self.tokenizer = make_tokenizer(SPECIAL_TOKENS[layout])
        self._picture_end = token_id(self.tokenizer, PICTURE_ENDS[layout])
        prompt = self.family.render_prompt(self.config, "?", [SLOTS**2])
        self.image_token, self.end = (token_id(self.tokenizer, token) for token in (prompt.image_token, END))
        self.stops = {token_id(self.tokenizer, stop) for stop in prompt.stop}
        self.prefix = self._split("?")[0]
        self.system = frozenset(self.tokenizer.encode(SYSTEM_MESSAGES[layout]).ids)
        self._tail = cache(lambda question: self._split(question)[1])
        self._answer = cache(lambda text: [*self.tokenizer.encode(text).ids, self.end])
        self._slots = cache(self._find_slots)
        self.places = self._places()
        self.next = int(self.places.max()) + 1

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 [B,height,width,3] -> what the vision encoder takes [B,...]."""
        return torch.from_numpy(np.stack([self._cut(image).pixels for image in images]))

    def slots(self, rows: int = SLOTS, columns: int = SLOTS) -> np.ndarray:
        """int [V]: of a picture of so many slots, the number (row by row) of that which each visual token shows."""
        return self._slots(rows, columns)

    def token_of(self, item: Item) -> int:
        """Index of the visual token, in prompt order, that shows an object of a whole scene."""
        return int(np.flatnonzero(self.slots() == item.row * SLOTS + item.column)[0])

    def tail(self, question: str) -> list[int]:
        """What follows the picture in a prompt."""
        return self._tail(question)

    def answer(self, text: str) -> list[int]:
        """With the token that ends it."""
        return self._answer(text)

    def _cut(self, image: np.ndarray) -> Pieces:
        return self.family.cut(Image.fromarray(image), self.config)

    def _find_slots(self, rows: int, columns: int) -> np.ndarray:
        left, top = self._cut(np.zeros((rows * SLOT, columns * SLOT, 3), np.uint8)).boxes.T[:2]
        return np.rint(top * rows).astype(int) * columns + np.rint(left * columns).astype(int)

    def _split(self, question: str) -> tuple[list[int], list[int]]:
        text = self.family.render_prompt(self.config, question, [SLOTS**2]).text
        ids = self.tokenizer.encode(text).ids
        cut = ids.index(self._picture_end) + 1
        return ids[:cut], ids[cut:]

    def _places(self) -> np.ndarray:
        own = self._cut(np.zeros((SLOTS * SLOT, SLOTS * SLOT, 3), np.uint8)).places
        ids = np.array(self.prefix)
        if own is None:
            return np.arange(len(ids))[:, None].repeat(3, 1)
        return token_places(len(ids), np.flatnonzero(ids == self.image_token), [own])
