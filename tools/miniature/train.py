"""The stages of training one model, each resumable where it stopped."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tools.miniature import language_stage, vision_stage
from tools.miniature.checkpoint import CONFIGS, Miniature
from tools.miniature.optimiser import Optimiser
from tools.miniature.scenes import Split

SAVE_EVERY = 60.0
"""Seconds between two saves of a running stage."""
RUNS = range(20)
"""Seeds of a training."""
SCENES = 10_000_000
"""That a stage may use in each of them."""
LANGUAGE_SEEDS = SCENES * len(RUNS)
"""Where the second stage's scenes start behind the first's."""
OnProgress = Callable[[str, float, str], None]
"""Gets the stage, how much of it is done (0..1), and its latest figures in words."""


@dataclass(frozen=True)
class Recipe:
    """Steps and rates of both stages, scenes of the second, and where in the training seeds this model's scenes start."""

    vision_steps: int
    vision_rate: float
    language_steps: int
    language_rate: float
    gallery: int
    first_seed: int


RECIPES = {
    "small": Recipe(1500, 2e-3, 2000, 2e-3, 5000, Split.TRAINING.value.start),
    "large": Recipe(2500, 2e-3, 2500, 1.5e-3, 5000, Split.TRAINING.value.start + 2 * LANGUAGE_SEEDS),
}
"""The two share no scene: where they agree, it is not for having seen the same."""


@dataclass
class Stage:
    """One optimisation in bfloat16 whose state lies in a file."""

    path: Path
    modules: nn.ModuleList
    rate: float
    total: int
    """Steps."""
    figures: str = ""
    optimiser: Optimiser = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = Optimiser(list(self.modules.parameters()), self.rate, self.total)
        self.modules.bfloat16()

    def steps(self, on_progress: OnProgress) -> Iterator[int]:
        """The numbers of the steps that are left to make; saves now and then, and at the end."""
        self._resume()
        saved = time.monotonic()
        while self.optimiser.done < self.total:
            yield self.optimiser.done
            done = self.optimiser.done
            on_progress(self.path.stem, done / self.total, f"step {done}: {self.figures}")
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        on_progress(self.path.stem, 1.0, f"step {self.total}: {self.figures}")

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save({"optimiser": self.optimiser.state(), "figures": self.figures}, part)
        part.replace(self.path)

    def _resume(self) -> None:
        if self.path.exists():
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
            self.optimiser.load(state["optimiser"])
            self.figures = state["figures"]


def train_vision(name: str, seed: int, work: Path, on_progress: OnProgress) -> Miniature:
    """Stage 1; the model comes back with a trained encoder, and words for what it says."""
    recipe, torch_seed = RECIPES[name], seed * len(RECIPES) + list(RECIPES).index(name)
    torch.manual_seed(torch_seed)
    model = Miniature(CONFIGS[name])
    language = model.config["llm_config"]
    labeller = vision_stage.Labeller(language["vocab_size"], language["hidden_size"])
    stage = Stage(
        work / f"{name}-{seed}-vision.pt",
        nn.ModuleList([model.vision_model, labeller]),
        recipe.vision_rate,
        recipe.vision_steps,
    )
    first = recipe.first_seed + seed * SCENES
    for step in stage.steps(on_progress):
        start = first + step * vision_stage.BATCH
        tiles, labels = vision_stage.batch(range(start, start + vision_stage.BATCH))
        loss = vision_stage.loss_of(model.vision_model, labeller, tiles, labels)
        stage.optimiser.step(loss.total)
        stage.figures = f"loss {loss.total.item():.3f}, {loss.right:.1%} of the objects right"
    tiles, _ = vision_stage.batch(range(first, first + vision_stage.BATCH))
    language_stage.start(model.float(), labeller.words.float(), tiles)
    return model


def train_language(model: Miniature, name: str, seed: int, work: Path, on_progress: OnProgress) -> None:
    """Stage 2, on scenes that stage 1 has not seen."""
    recipe, encoder = RECIPES[name], language_stage.Encoder()
    stage = Stage(
        work / f"{name}-{seed}-language.pt",
        nn.ModuleList([model.language_model]),
        recipe.language_rate,
        recipe.language_steps,
    )
    first = recipe.first_seed + LANGUAGE_SEEDS + seed * SCENES
    gallery = language_stage.make_gallery(model.vision_model.bfloat16(), range(first, first + recipe.gallery))
    shares: dict[str, float] = {}
    for step in stage.steps(on_progress):
        batch = language_stage.make_batch(encoder, gallery, np.random.default_rng((first, step)))
        loss = language_stage.loss_of(model, encoder, batch)
        stage.optimiser.step(loss.total)
        for kind, right in loss.right.items():
            shares[kind] = 0.95 * shares.get(kind, right) + 0.05 * right
        stage.figures = f"loss {loss.total.item():.3f}; " + ", ".join(f"{k} {shares[k]:.0%}" for k in sorted(shares))
    model.float()


def train(name: str, seed: int, work: Path, on_progress: OnProgress) -> Miniature:
    """Both stages."""
    model = train_vision(name, seed, work, on_progress)
    train_language(model, name, seed, work, on_progress)
    return model
