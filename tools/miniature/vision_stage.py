"""Stage 1: the vision encoder alone learns to say, in the words of the language model, what each visual token shows."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.miniature.model import WORD_STD, VisionModel
from tools.miniature.scenes import CELL, COLOURS, NUMBERS, SHAPES, SIDE, Item, Split, draw, make_crowd
from tools.miniature.vocabulary import make_tokenizer, token_id

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TOKEN = 28
"""Pixels along what one visual token shows."""
GRID = SIDE // CELL
SHARPNESS = 6.0
"""Of the labels' logits: features come out about as long as the words that they hold."""
BATCH = 8
NOTHING = -1


def to_tiles(images: np.ndarray) -> Tensor:
    """uint8 [B,224,224,3] -> float32 [4B,3,112,112], as the engine cuts and normalises a scene."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    tiles = ((pixels - MEAN) / STD).unflatten(3, (2, -1)).unflatten(2, (2, -1))
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def token_of(item: Item) -> int:
    """Index of the visual token, in prompt order, that shows the middle of an object."""
    column, row = item.x // TOKEN, item.y // TOKEN
    side = SIDE // TOKEN // 2
    return ((row // side * 2 + column // side) * side + row % side) * side + column % side


def label(items: tuple[Item, ...]) -> np.ndarray:
    """int64 [V,7]: colour, shape, number, box of the object in each visual token, or NOTHING."""
    labels = np.full(((SIDE // TOKEN) ** 2, 7), NOTHING)
    colours = list(COLOURS)
    for item in items:
        kind = (colours.index(item.colour), SHAPES.index(item.shape), item.number - NUMBERS.start)
        labels[token_of(item)] = (*kind, *item.box())
    return labels


@dataclass(frozen=True)
class Loss:
    """What a batch costs, and how many of its objects have every word right."""

    total: Tensor
    right: float


class Labeller(nn.Module):
    """Reads colour, shape and number out of features by the words' own embeddings, boxes by heads of its own."""

    def __init__(self, vocab_size: int, size: int) -> None:
        super().__init__()
        words = torch.randn(vocab_size, size)
        tokenizer = make_tokenizer()
        # A number starts as the sum of its digits, so that each digit is learnt from all numbers that have it.
        tens, ones = torch.randn(10, size), torch.randn(10, size)
        for number in NUMBERS:
            at = token_id(tokenizer, str(number))
            words[at] = (tens[number // 10] + ones[number % 10] + 0.7 * words[at]) / 2.49**0.5
        self.words = nn.Parameter(WORD_STD * words)
        self.nothing = nn.Parameter(WORD_STD * torch.randn(1, size))
        self.box = nn.Linear(size, 4 * GRID)
        nn.init.normal_(self.box.weight, std=WORD_STD)
        self.roles = [
            torch.tensor([token_id(tokenizer, str(word)) for word in words]) for words in (COLOURS, SHAPES, NUMBERS)
        ]

    def forward(self, features: Tensor, labels: Tensor) -> Loss:
        """[B,V,C], [B,V,7] -> the loss over tokens with an object, and a little over those without."""
        shown = labels[..., 0] != NOTHING
        found, wanted = SHARPNESS * features[shown], labels[shown]
        colours = torch.cat([self.words[self.roles[0]], self.nothing])
        empty = F.linear(SHARPNESS * features[~shown], colours)
        total = 0.3 * F.cross_entropy(empty, torch.full((len(empty),), len(COLOURS)))
        right = torch.ones(len(wanted), dtype=torch.bool)
        for role, table in enumerate((colours, self.words[self.roles[1]], self.words[self.roles[2]])):
            logits = F.linear(found, table)
            total = total + F.cross_entropy(logits, wanted[:, role])
            right &= logits.argmax(-1) == wanted[:, role]
        boxes = self.box(found).unflatten(-1, (4, GRID))
        total = total + F.cross_entropy(boxes.flatten(0, 1), wanted[:, 3:].flatten())
        return Loss(total, right.float().mean().item())


def batch(step: int, first_seed: int = Split.TRAINING.value.start) -> tuple[Tensor, Tensor]:
    """Tiles [4B,3,S,S] and labels [B,V,7] of the crowds of a step."""
    seeds = range(first_seed + step * BATCH, first_seed + (step + 1) * BATCH)
    crowds = [(seed, make_crowd(seed)) for seed in seeds]
    images = np.stack([draw(seed, items) for seed, items in crowds])
    return to_tiles(images), torch.from_numpy(np.stack([label(items) for _, items in crowds]))


def loss_of(vision: VisionModel, labeller: Labeller, tiles: Tensor, labels: Tensor) -> Loss:
    return labeller(vision(tiles).unflatten(0, (-1, 4)).flatten(1, 2), labels)
