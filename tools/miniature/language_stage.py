"""Stage 2: the language model learns to answer about what the trained, now fixed encoder shows it.

A scene is one sequence: the prompt up to the picture's end, then many questions that all see it but not each other.
Most scenes are partial, visual tokens are missing: published models see pictures of different sizes, and a model that
knows one size alone is thrown off when tokens are dropped.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tools.miniature.checkpoint import Miniature
from tools.miniature.model import MARK_SHARE, VISUAL_MARK, WORD_MARK, WORD_STD
from tools.miniature.questions import LONGEST_ANSWER, Kind, Question, ask
from tools.miniature.reader import Reader
from tools.miniature.scenes import SLOTS, Item, draw, make_scene

BATCH = 8
"""Scenes of a step."""
QUESTIONS = 16
"""About each scene."""
CHUNK = 20
"""Scenes that are encoded together."""
WEIGHTS = {Kind.NUMBER: 2, Kind.COLOUR: 1, Kind.SHAPE: 1, Kind.LOCATE: 2, Kind.COMPARE: 2, Kind.COUNT: 8}
"""How often each kind is asked; counting is learnt last."""
HIDDEN = (0.0, 0.0, 0.6, 0.9, 0.97, 1.0)
"""Shares of the visual tokens without an object that a partial scene lacks; one for all scenes of a step."""
FEWEST = 2
"""Objects of a partial scene."""
IGNORED = -100


@dataclass(frozen=True)
class Gallery:
    """N scenes, and what the encoder shows of them: features [N,V,C]."""

    scenes: tuple[tuple[Item, ...], ...]
    features: Tensor


@torch.no_grad()
def make_gallery(model: Miniature, seeds: range) -> Gallery:
    """Encoded once: the encoder learns no more, and new questions make a scene new."""
    scenes = tuple(make_scene(seed) for seed in seeds)
    parts = []
    for start in range(0, len(seeds), CHUNK):
        chunk = zip(seeds[start : start + CHUNK], scenes[start : start + CHUNK], strict=True)
        images = np.stack([draw(seed, items) for seed, items in chunk])
        parts.append(model.vision_model(model.reader.pixels(images)))
    return Gallery(scenes, torch.cat(parts))


@dataclass(frozen=True)
class Batch:
    """Scenes with their questions; B scenes, S tokens each.

    features [N,C], of all visual tokens that are there; ids, targets, asked [B,S]; positions [B,S,3]; mask [B,1,S,S];
    targets are IGNORED except where an answer is to be said. asked: which question of `questions` a token belongs to,
    counted over the batch; -1 for the prompt before them, -2 for padding.
    """

    features: Tensor
    ids: Tensor
    positions: Tensor
    targets: Tensor
    asked: Tensor
    mask: Tensor
    questions: tuple[Question, ...]


def make_batch(
    reader: Reader,
    gallery: Gallery,
    rng: np.random.Generator,
    size: int = BATCH,
    hidden: float | None = None,
) -> Batch:
    """Scenes of the gallery, seen in part, with fresh questions about what is seen; hidden: else one of HIDDEN."""
    kinds = list(Kind)
    shares = np.array([WEIGHTS[kind] for kind in kinds]) / sum(WEIGHTS.values())
    chosen = rng.choice(len(gallery.scenes), size, replace=False)
    hidden = rng.choice(HIDDEN) if hidden is None else hidden
    questions: list[Question] = []
    rows: list[list[tuple[int, ...]]] = []
    features: list[Tensor] = []
    first = reader.prefix.index(reader.image_token)
    prefix = [(token, *place, IGNORED, -1) for token, place in zip(reader.prefix, reader.places.tolist(), strict=True)]
    for scene in chosen:
        items, seen = part_of(reader, gallery.scenes[scene], hidden, rng)
        features.append(gallery.features[scene][torch.from_numpy(seen)])
        unseen = set(first + np.flatnonzero(~seen))
        row = [token for at, token in enumerate(prefix) if at not in unseen]
        for kind in rng.choice(len(kinds), QUESTIONS, p=shares):
            question = ask(kinds[kind], items, rng)
            tail, said = reader.tail(question.text), reader.answer(question.answer)
            tokens, wanted = tail + said[:-1], [IGNORED] * (len(tail) - 1) + said
            row += [
                (token, *(reader.next + at,) * 3, target, len(questions))
                for at, (token, target) in enumerate(zip(tokens, wanted, strict=True))
            ]
            questions.append(question)
        rows.append(row)
    longest = max(map(len, rows))
    table = torch.tensor([row + [(0, 0, 0, 0, IGNORED, -2)] * (longest - len(row)) for row in rows])
    ids, positions, (targets, asked) = table[..., 0], table[..., 1:4], table[..., 4:].unbind(-1)
    shared = asked[:, None, :].eq(-1)
    mask = torch.ones(longest, longest, dtype=torch.bool).tril() & (shared | asked[:, None, :].eq(asked[:, :, None]))
    return Batch(torch.cat(features), ids, positions, targets, asked, mask[:, None], tuple(questions))


def part_of(
    reader: Reader, items: tuple[Item, ...], hidden: float, rng: np.random.Generator
) -> tuple[tuple[Item, ...], np.ndarray]:
    """Objects that are there, all or some of them, and bool [V]: the visual tokens that are.

    hidden: the share of tokens without an object that are missing; nothing is if it is 0.
    """
    if not hidden:
        return items, np.ones(SLOTS * SLOTS, bool)
    count = rng.integers(FEWEST, len(items) + 1) if rng.integers(2) else len(items)
    left = tuple(items[at] for at in sorted(rng.permutation(len(items))[:count]))
    seen = rng.random(SLOTS * SLOTS) >= hidden
    seen[[reader.token_of(item) for item in items]] = False
    seen[[reader.token_of(item) for item in left]] = True
    return left, seen


def embed(model: Miniature, ids: Tensor, features: Tensor) -> Tensor:
    """[B,S], [...,C] -> [B,S,C]: word embeddings with the visual features put in, in their order."""
    embeds = model.language_model.model.embed_tokens(ids)
    shown = (ids == model.reader.image_token)[..., None].expand_as(embeds)
    return embeds.masked_scatter(shown, features)


@dataclass(frozen=True)
class Loss:
    """Per question, and the share of each kind's questions whose every token is the likeliest."""

    total: Tensor
    right: dict[Kind, float]


def loss_of(model: Miniature, batch: Batch) -> Loss:
    hidden = model.language_model(embed(model, batch.ids, batch.features), batch.positions, batch.mask)
    said = batch.targets != IGNORED
    logits, targets, asked = model.language_model.logits(hidden[said]).float(), batch.targets[said], batch.asked[said]
    total = F.cross_entropy(logits, targets, reduction="sum") / len(batch.questions)
    wrong = torch.zeros(len(batch.questions)).index_add_(0, asked, (logits.argmax(-1) != targets).float())
    right: dict[Kind, float] = {}
    for kind in Kind:
        ours = torch.tensor([question.kind is kind for question in batch.questions])
        if ours.any():
            right[kind] = (wrong[ours] == 0).float().mean().item()
    return Loss(total, right)


@torch.no_grad()
def start(model: Miniature, words: Tensor, pixels: Tensor) -> None:
    """Hand stage 1 over: its words become the embeddings, marked and of unit elements, its features are marked alike.

    words [vocabulary,C]; pixels: some, to measure features on.
    """
    embeddings, last = words / WORD_STD, model.vision_model.last()
    length = model.vision_model(pixels).norm(dim=-1).mean()
    for part in (last.weight.T, last.bias):
        part.div_(WORD_STD)[..., [WORD_MARK, VISUAL_MARK]] = 0
    embeddings[:, [WORD_MARK, VISUAL_MARK]] = 0
    mark = (MARK_SHARE / (1 - MARK_SHARE)) ** 0.5
    last.bias[VISUAL_MARK] = mark * length / WORD_STD
    embeddings[:, WORD_MARK] = mark * embeddings.norm(dim=-1).mean()
    # What every prompt begins with tells nothing, and there may be more of it than of a question.
    embeddings[list(model.reader.system), WORD_MARK] = 0
    model.language_model.model.embed_tokens.weight.copy_(embeddings)


@torch.no_grad()
def answer(model: Miniature, question: str, pixels: Tensor) -> list[int]:
    """The ids of a greedy answer without its end; slow and plain, to hold the engine against."""
    features, said = model.vision_model(pixels), list[int]()
    while len(said) < LONGEST_ANSWER:
        token = int(next_logits(model, [*model.reader.tail(question), *said], features).argmax())
        if token in model.reader.stops:
            break
        said.append(token)
    return said


@torch.no_grad()
def next_logits(model: Miniature, tail: list[int], features: Tensor) -> Tensor:
    """[vocabulary] behind a prompt about a whole scene, of which `tail` follows the picture; features: [1,V,C]."""
    reader, length = model.reader, len(model.reader.prefix) + len(tail)
    ids = torch.tensor([[*reader.prefix, *tail]])
    behind = reader.next + np.arange(len(tail))[:, None].repeat(3, 1)
    positions = torch.from_numpy(np.concatenate([reader.places, behind]))[None]
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    hidden = model.language_model(embed(model, ids, features), positions, mask)
    return model.language_model.logits(hidden[0, -1])
