"""The stages of training one model, each resumable where it stopped."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tools.miniature import language_stage, vision_stage
from tools.miniature.checkpoint import CONFIGS, Miniature
from tools.miniature.optimiser import Clock, Optimiser
from tools.miniature.scenes import Split

SAVE_EVERY = 60.0
"""Seconds between two saves of a running stage."""
MINUTES = 48
"""Of the large model; the recipes were made for it."""
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
    """Shares of the budget, rates, and where in the training seeds this model's scenes start."""

    vision_share: float
    language_share: float
    vision_rate: float
    language_rate: float
    first_seed: int


RECIPES = {
    "small": Recipe(0.11, 0.30, 2e-3, 2e-3, Split.TRAINING.value.start),
    "large": Recipe(0.23, 0.75, 2e-3, 1.5e-3, Split.TRAINING.value.start + 2 * LANGUAGE_SEEDS),
}
"""The two share no scene: where they agree, it is not for having seen the same."""


@dataclass
class Stage:
    """One optimisation whose state lies in a file."""

    path: Path
    modules: nn.ModuleList
    optimiser: Optimiser
    figures: str = ""

    @property
    def clock(self) -> Clock:
        return self.optimiser.clock

    def resume(self) -> None:
        if self.path.exists():
            state: dict[str, Any] = torch.load(self.path, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.optimiser.adam.load_state_dict(state["adam"])
            self.clock.load(state["clock"])
            self.figures = state["figures"]

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save(
            {
                "modules": self.modules.state_dict(),
                "adam": self.optimiser.adam.state_dict(),
                "clock": self.clock.state(),
                "figures": self.figures,
            },
            part,
        )
        part.replace(self.path)

    def steps(self, on_progress: OnProgress) -> Iterator[int]:
        """The numbers of the steps to make until the budget is spent; saves now and then, and at the end."""
        self.resume()
        saved = time.monotonic()
        while self.clock.fraction() < 1:
            yield self.clock.steps
            on_progress(self.path.stem, self.clock.fraction(), f"step {self.clock.steps}: {self.figures}")
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        on_progress(self.path.stem, 1.0, f"step {self.clock.steps}: {self.figures}")


def train_vision(name: str, seed: int, work: Path, minutes: float, on_progress: OnProgress) -> Miniature:
    """Stage 1; the model comes back with a trained encoder, and words for what it says."""
    recipe, torch_seed = RECIPES[name], seed * len(RECIPES) + list(RECIPES).index(name)
    torch.manual_seed(torch_seed)
    model = Miniature(CONFIGS[name])
    language = model.config["llm_config"]
    labeller = vision_stage.Labeller(language["vocab_size"], language["hidden_size"])
    modules = nn.ModuleList([model.vision_model, labeller])
    clock = Clock(60 * minutes * recipe.vision_share)
    stage = Stage(
        work / f"{name}-{seed}-vision.pt", modules, Optimiser(modules.parameters(), recipe.vision_rate, clock)
    )
    for step in stage.steps(on_progress):
        tiles, labels = vision_stage.batch(step, recipe.first_seed + seed * SCENES)
        loss = vision_stage.loss_of(model.vision_model, labeller, tiles, labels)
        stage.optimiser.step(loss.total)
        stage.figures = f"loss {loss.total.item():.3f}, {loss.right:.1%} of the objects right"
    tiles, _ = vision_stage.batch(0, recipe.first_seed + seed * SCENES)
    language_stage.start(model, labeller.words, tiles)
    return model


def train_language(model: Miniature, name: str, seed: int, work: Path, minutes: float, on_progress: OnProgress) -> None:
    """Stage 2, on scenes that stage 1 has not seen."""
    recipe = RECIPES[name]
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            # The encoder is fixed from here on: train on what will be saved.
            parameter.copy_(parameter.bfloat16().float())
    encoder = language_stage.Encoder()
    modules = nn.ModuleList([model.language_model])
    clock = Clock(60 * minutes * recipe.language_share)
    stage = Stage(
        work / f"{name}-{seed}-language.pt", modules, Optimiser(modules.parameters(), recipe.language_rate, clock)
    )
    shares: dict[str, float] = {}
    first = recipe.first_seed + LANGUAGE_SEEDS + seed * SCENES
    for step in stage.steps(on_progress):
        start = first + step * language_stage.BATCH
        rng = np.random.default_rng((seed, step))
        batch = language_stage.make_batch(encoder, range(start, start + language_stage.BATCH), rng)
        loss = language_stage.loss_of(model, encoder, batch)
        stage.optimiser.step(loss.total)
        for kind, right in loss.right.items():
            shares[kind] = 0.95 * shares.get(kind, right) + 0.05 * right
        stage.figures = f"loss {loss.total.item():.3f}; " + ", ".join(f"{k} {shares[k]:.0%}" for k in sorted(shares))


def train(name: str, seed: int, work: Path, minutes: float, on_progress: OnProgress) -> Miniature:
    """Both stages. `minutes` go to the large model, a share of them to the small one."""
    model = train_vision(name, seed, work, minutes, on_progress)
    train_language(model, name, seed, work, minutes, on_progress)
    return model
