"""Stage 1: the vision encoder alone learns to say, in the words of the language model, what each visual token shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.miniature.model import WORD_STD
from tools.miniature.reader import Reader
from tools.miniature.scenes import COLOURS, NUMBERS, SHAPES, SLOT, SLOTS, Item, draw, make_crowd
from tools.miniature.vocabulary import COLUMNS, ROWS, token_id

BOX = (COLUMNS[::2], ROWS[::2], COLUMNS[1::2], ROWS[1::2])
"""An object fills its slot, so no first cell of a box is the last of another."""
ROLES: tuple[Sequence[object], ...] = (tuple(COLOURS), SHAPES, NUMBERS, *BOX)
"""Words that can be said of an object: colour, shape, number, and its box."""
SHARPNESS = 6.0
"""Of the labels' logits: features come out about as long as the words that they hold."""
BATCH = 4
"""Scenes of a step."""
NOTHING = -1
LENGTH = 2.6
"""Of features of all kinds, about that of the words that one holds together."""
KEEPING = 0.3
"""How much it costs to miss that length."""


@dataclass(frozen=True)
class Window:
    """A part of a scene, in slots."""

    row: int
    column: int
    rows: int
    columns: int

    def of(self, rows: np.ndarray, size: int = 1) -> np.ndarray:
        """[B,SLOTS*size,SLOTS*size,...] -> what is inside."""
        row, column = size * self.row, size * self.column
        return rows[:, row : row + size * self.rows, column : column + size * self.columns]


WHOLE = Window(0, 0, SLOTS, SLOTS)
SMALLEST = 4
"""Slots along a window."""


def some_window(rng: np.random.Generator) -> Window:
    """Of any size and place."""
    rows, columns = (int(side) for side in rng.integers(SMALLEST, SLOTS + 1, 2))
    row, column = int(rng.integers(SLOTS - rows + 1)), int(rng.integers(SLOTS - columns + 1))
    return Window(row, column, rows, columns)


def label(items: Sequence[Item]) -> np.ndarray:
    """int64 [SLOTS,SLOTS,7]: the place in each of ROLES of what is said of the object in each slot, or NOTHING."""
    labels = np.full((SLOTS, SLOTS, len(ROLES)), NOTHING)
    colours = list(COLOURS)
    for item in items:
        kind = (colours.index(item.colour), SHAPES.index(item.shape), NUMBERS.index(item.number))
        labels[item.row, item.column] = (*kind, item.column, item.row, item.column, item.row)
    return labels


@dataclass(frozen=True)
class Loss:
    """What a batch costs, and how many of its objects have every word right."""

    total: Tensor
    right: float


class Labeller(nn.Module):
    """Reads features by the words' own embeddings."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        language, tokenizer = reader.config.language, reader.tokenizer
        size = language.hidden_size
        words = torch.randn(language.vocab_size, size)
        # A number starts as the sum of its digits, so that each digit is learnt from all numbers that have it.
        tens, ones = torch.randn(10, size), torch.randn(10, size)
        for number in NUMBERS:
            at = token_id(tokenizer, str(number))
            words[at] = (tens[number // 10] + ones[number % 10] + 0.7 * words[at]) / 2.49**0.5
        self.words = nn.Parameter(WORD_STD * words)
        # A projector without a norm of its own in front makes features twenty times as long as words, and marks drown.
        self.keeps_length = reader.is_native
        self.nothing = nn.Parameter(WORD_STD * torch.randn(1, size))
        self.roles = [torch.tensor([token_id(tokenizer, str(word)) for word in words]) for words in ROLES]

    def forward(self, features: Tensor, labels: Tensor) -> Loss:
        """[B,V,C], [B,V,7] -> the loss over tokens with an object, and a little over those without."""
        shown = labels[..., 0] != NOTHING
        found, wanted = SHARPNESS * features[shown], labels[shown]
        colours = torch.cat([self.words[self.roles[0]], self.nothing])
        empty = F.linear(SHARPNESS * features[~shown], colours).float()
        total = 0.3 * F.cross_entropy(empty, torch.full((len(empty),), len(COLOURS)))
        right = torch.ones(len(wanted), dtype=torch.bool)
        for role, ids in enumerate(self.roles):
            logits = F.linear(found, self.words[ids] if role else colours).float()
            total = total + F.cross_entropy(logits, wanted[:, role])
            right &= logits.argmax(-1) == wanted[:, role]
        if self.keeps_length:
            lengths = features.float().norm(dim=-1)
            total = total + KEEPING * (lengths - LENGTH).square().mean()
        return Loss(total, right.float().mean().item())


def batch(reader: Reader, seeds: range, window: Window = WHOLE) -> tuple[Tensor, Tensor]:
    """Pixels [B,...] and labels [B,V,7] of a part of crowds. Boxes are in cells of the whole, which paper shows."""
    crowds = [(seed, make_crowd(seed)) for seed in seeds]
    images = window.of(np.stack([draw(seed, items) for seed, items in crowds]), SLOT)
    labels = window.of(np.stack([label(items) for _, items in crowds]))
    tokens = labels.reshape(len(seeds), -1, len(ROLES))[:, reader.slots(window.rows, window.columns)]
    return reader.pixels(images), torch.from_numpy(tokens)


def loss_of(vision: nn.Module, labeller: Labeller, pixels: Tensor, labels: Tensor) -> Loss:
    return labeller(vision(pixels), labels)
