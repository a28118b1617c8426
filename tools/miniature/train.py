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
from tools.miniature.checkpoint import Miniature
from tools.miniature.configs import CONFIGS
from tools.miniature.optimiser import Optimiser
from tools.miniature.scenes import Split

SAVE_EVERY = 60.0
"""Seconds between two saves of a running stage."""
RUNS = range(20)
"""Seeds of a training."""
SCENES = 10_000_000
"""From the first scene of a stage in one training to that in the next."""
MOST_SCENES = SCENES // 2
"""That a stage may use."""
LANGUAGE_SEEDS = SCENES * len(RUNS)
"""Where the pair's second stages start behind the first ones."""
OnProgress = Callable[[str, float, str], None]
"""Gets the stage, how much of it is done (0..1), and its latest figures in words."""


@dataclass(frozen=True)
class Steps:
    """How many, and the highest rate."""

    count: int
    rate: float


@dataclass(frozen=True)
class Recipe:
    """Steps of each stage, scenes of the second, and where in the training seeds this model's scenes start."""

    vision: Steps
    shallow: Steps | None
    """With a part of the language model's layers, which learn in that part of the time."""
    language: Steps
    gallery: int
    scenes: tuple[int, int]
    """Of each stage in the first training."""
    weights: range
    """Seeds of random weights, one for each training."""


FIRST = Split.TRAINING.value.start
RECIPES = {
    "small": Recipe(Steps(1500, 2e-3), None, Steps(2400, 2e-3), 2000, (FIRST, FIRST + LANGUAGE_SEEDS), range(0, 40, 2)),
    "large": Recipe(
        Steps(800, 2e-3),
        Steps(2000, 1.5e-3),
        Steps(600, 1e-3),
        4000,
        (FIRST + 2 * LANGUAGE_SEEDS, FIRST + 3 * LANGUAGE_SEEDS),
        range(1, 40, 2),
    ),
    "small-qwen2-vl": Recipe(
        Steps(1500, 2e-3),
        None,
        Steps(1200, 2e-3),
        800,
        (FIRST + 4 * LANGUAGE_SEEDS, FIRST + 4 * LANGUAGE_SEEDS + MOST_SCENES),
        range(40, 60),
    ),
}
"""No two share a scene: where they agree, it is not for having seen the same."""


@dataclass
class Stage:
    """One optimisation in bfloat16 whose state lies in a file."""

    path: Path
    modules: nn.ModuleList
    plan: Steps
    figures: str = ""
    optimiser: Optimiser = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = Optimiser(list(self.modules.parameters()), self.plan.rate, self.plan.count)
        self.modules.bfloat16()

    def steps(self, on_progress: OnProgress) -> Iterator[int]:
        """The numbers of the steps that are left to make; saves now and then, and at the end."""
        self._resume()
        saved = time.monotonic()
        while self.optimiser.done < self.plan.count:
            yield self.optimiser.done
            done = self.optimiser.done
            on_progress(self.path.stem, done / self.plan.count, f"step {done}: {self.figures}")
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()
        on_progress(self.path.stem, 1.0, f"step {self.plan.count}: {self.figures}")

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
    recipe = RECIPES[name]
    torch.manual_seed(recipe.weights[seed])
    model = Miniature(CONFIGS[name], shallow=recipe.shallow is not None)
    labeller = vision_stage.Labeller(model.reader)
    stage = Stage(work / f"{name}-{seed}-vision.pt", nn.ModuleList([model.vision_model, labeller]), recipe.vision)
    first = recipe.scenes[0] + seed * SCENES
    for step in stage.steps(on_progress):
        start = first + step * vision_stage.BATCH
        # A model that takes pictures of any size sees whole scenes and parts by turns.
        is_whole = step % 2 == 0 or not model.reader.is_native
        window = vision_stage.WHOLE if is_whole else vision_stage.some_window(np.random.default_rng((first, step)))
        pixels, labels = vision_stage.batch(model.reader, range(start, start + vision_stage.BATCH), window)
        loss = vision_stage.loss_of(model.vision_model, labeller, pixels, labels)
        stage.optimiser.step(loss.total)
        stage.figures = f"loss {loss.total.item():.3f}, {loss.right:.1%} of the objects right"
    pixels, _ = vision_stage.batch(model.reader, range(first, first + vision_stage.BATCH))
    language_stage.start(model.float(), labeller.words.float(), pixels)
    return model


def train_language(model: Miniature, name: str, seed: int, work: Path, on_progress: OnProgress) -> None:
    """Stage 2, on scenes that stage 1 has not seen."""
    recipe = RECIPES[name]
    first = recipe.scenes[1] + seed * SCENES
    model.vision_model.bfloat16()
    gallery = language_stage.make_gallery(model, range(first, first + recipe.gallery))
    if recipe.shallow is not None:
        run_language(model, gallery, work / f"{name}-{seed}-shallow.pt", recipe.shallow, (first, 0), on_progress)
        model.deepen()
    run_language(model, gallery, work / f"{name}-{seed}-language.pt", recipe.language, (first, 1), on_progress)
    model.float()


def run_language(
    model: Miniature,
    gallery: language_stage.Gallery,
    path: Path,
    plan: Steps,
    seed: tuple[int, int],
    on_progress: OnProgress,
) -> None:
    """Questions about a gallery until the plan is done."""
    shares = dict[str, float]()
    stage = Stage(path, nn.ModuleList([model.language_model]), plan)
    for step in stage.steps(on_progress):
        batch = language_stage.make_batch(model.reader, gallery, np.random.default_rng((*seed, step)))
        loss = language_stage.loss_of(model, batch)
        stage.optimiser.step(loss.total)
        for kind, right in loss.right.items():
            shares[kind] = 0.95 * shares.get(kind, right) + 0.05 * right
        stage.figures = f"loss {loss.total.item():.3f}; " + ", ".join(f"{k} {shares[k]:.0%}" for k in sorted(shares))


def train(name: str, seed: int, work: Path, on_progress: OnProgress) -> Miniature:
    """Both stages."""
    model = train_vision(name, seed, work, on_progress)
    train_language(model, name, seed, work, on_progress)
    return model
