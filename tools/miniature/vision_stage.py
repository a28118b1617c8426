"""Stage 1: the vision encoder alone learns to say, in the words of the language model, what each visual token shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.miniature.model import WORD_STD, VisionModel
from tools.miniature.scenes import COLOURS, NUMBERS, SHAPES, SLOT, SLOTS, TILE, TILES, Item, draw, make_crowd
from tools.miniature.vocabulary import COLUMNS, ROWS, make_tokenizer, token_id

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
BOX = (COLUMNS[::2], ROWS[::2], COLUMNS[1::2], ROWS[1::2])
"""An object fills its slot, so no first cell of a box is the last of another."""
ROLES: tuple[Sequence[object], ...] = (tuple(COLOURS), SHAPES, NUMBERS, *BOX)
"""Words that can be said of an object: colour, shape, number, and its box."""
SHARPNESS = 6.0
"""Of the labels' logits: features come out about as long as the words that they hold."""
BATCH = 4
"""Scenes of a step."""
NOTHING = -1


def to_tiles(images: np.ndarray) -> Tensor:
    """uint8 [B,SIDE,SIDE,3] -> float32 [B*N,3,P,P], as the engine cuts and normalises a scene."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    tiles = ((pixels - MEAN) / STD).unflatten(3, (TILES, -1)).unflatten(2, (TILES, -1))
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def token_of(item: Item) -> int:
    """Index of the visual token, in prompt order, that shows an object."""
    side = TILE // SLOT
    tile = item.row // side * TILES + item.column // side
    return (tile * side + item.row % side) * side + item.column % side


def label(items: Sequence[Item]) -> np.ndarray:
    """int64 [V,7]: the place in each of ROLES of what is said of the object in each visual token, or NOTHING."""
    labels = np.full((SLOTS * SLOTS, len(ROLES)), NOTHING)
    colours = list(COLOURS)
    for item in items:
        kind = (colours.index(item.colour), SHAPES.index(item.shape), NUMBERS.index(item.number))
        labels[token_of(item)] = (*kind, item.column, item.row, item.column, item.row)
    return labels


@dataclass(frozen=True)
class Loss:
    """What a batch costs, and how many of its objects have every word right."""

    total: Tensor
    right: float


class Labeller(nn.Module):
    """Reads features by the words' own embeddings."""

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
        return Loss(total, right.float().mean().item())


def batch(seeds: range) -> tuple[Tensor, Tensor]:
    """Tiles [B*N,3,P,P] and labels [B,V,7] of crowds."""
    crowds = [(seed, make_crowd(seed)) for seed in seeds]
    images = np.stack([draw(seed, items) for seed, items in crowds])
    return to_tiles(images), torch.from_numpy(np.stack([label(items) for _, items in crowds]))


def loss_of(vision: VisionModel, labeller: Labeller, tiles: Tensor, labels: Tensor) -> Loss:
    return labeller(encode(vision, tiles), labels)


def encode(vision: VisionModel, tiles: Tensor) -> Tensor:
    """[B*N,3,P,P] -> [B,V,C]"""
    return vision(tiles.to(vision.embeddings.class_embedding.dtype)).unflatten(0, (-1, TILES**2)).flatten(1, 2)
