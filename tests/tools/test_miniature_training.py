"""Training of the miniature pair: what is shown in part, and steps that learn, add up and resume."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tools.miniature import language_stage, vision_stage
from tools.miniature.checkpoint import Miniature
from tools.miniature.configs import CONFIGS, make_config, make_native_config
from tools.miniature.language_stage import HIDDEN, make_batch, part_of
from tools.miniature.optimiser import Optimiser
from tools.miniature.reader import Reader
from tools.miniature.scenes import SLOTS, Split, make_scene
from tools.miniature.train import MOST_SCENES, RECIPES, RUNS, SCENES, Stage, Steps
from tools.train_miniature import main

TINY = make_config(vision=(32, 1, 2), language=(48, 3, 3))
NATIVE = make_native_config(vision=(32, 1, 2), language=(48, 3, 3))
both_layouts = pytest.mark.parametrize("config", [TINY, NATIVE], ids=["internvl2", "qwen2-vl"])
torch.set_num_threads(1)


def test_training_stays_in_its_split() -> None:
    """Both stages of all models, for every seed and more steps than any budget allows."""
    firsts = [first + seed * SCENES for recipe in RECIPES.values() for first in recipe.scenes for seed in RUNS]
    ranges = [range(first, first + MOST_SCENES) for first in firsts]
    ranges.sort(key=lambda seeds: seeds.start)
    assert all(one.stop <= two.start for one, two in itertools.pairwise(ranges))
    assert all(seeds.start in Split.TRAINING.value and seeds[-1] in Split.TRAINING.value for seeds in ranges)


def test_no_two_trainings_start_with_the_same_weights() -> None:
    seeds = [seed for recipe in RECIPES.values() for seed in recipe.weights]
    assert len(seeds) == len(set(seeds)) == len(RECIPES) * len(RUNS)


@both_layouts
@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_partial_scene_shows_what_is_asked_about(hidden: float, config: dict[str, Any]) -> None:
    reader = Reader(config)
    rng = np.random.default_rng(0)
    for seed in range(20):
        items = make_scene(seed)
        left, seen = part_of(reader, items, hidden, rng)
        objects = {reader.token_of(item) for item in items}
        assert set(left) <= set(items)
        assert {reader.token_of(item) for item in left} == objects & set(np.flatnonzero(seen))
        empty = 1 - (seen.sum() - len(left)) / (SLOTS**2 - len(items))
        assert empty == pytest.approx(hidden, abs=0.15)


@both_layouts
def test_a_missing_token_leaves_a_gap(config: dict[str, Any]) -> None:
    """Kept tokens stay in order, with their own features and positions; questions stand where they always do."""
    model = Miniature(config)
    reader = model.reader
    gallery = language_stage.make_gallery(model, range(1))
    batch = make_batch(reader, gallery, np.random.default_rng(1), size=1, hidden=0.9)
    shown = batch.ids[0] == reader.image_token
    assert 0 < len(batch.features) == shown.sum() < SLOTS**2
    places = reader.places[np.array(reader.prefix) == reader.image_token].tolist()
    kept = [places.index(place) for place in batch.positions[0, shown].tolist()]
    assert torch.equal(batch.features, gallery.features[0][kept])
    assert batch.positions[0, (batch.asked[0] == 0).nonzero()[0]].tolist() == [[reader.next] * 3]


def test_a_deepened_model_says_the_same() -> None:
    torch.manual_seed(0)
    model = Miniature(TINY, shallow=True)
    batch = make_batch(model.reader, language_stage.make_gallery(model, range(1)), np.random.default_rng(0), size=1)
    with torch.no_grad():
        before = language_stage.loss_of(model, batch).total
        model.deepen()
        after = language_stage.loss_of(model, batch).total
    assert len(model.language_model.model.layers) == TINY["llm_config"]["num_hidden_layers"]
    torch.testing.assert_close(after, before)


@both_layouts
def test_steps_learn(config: dict[str, Any]) -> None:
    """A dozen steps on one batch lower the loss of either stage."""
    torch.manual_seed(0)
    model = Miniature(config)
    labeller = vision_stage.Labeller(model.reader)
    pixels, labels = vision_stage.batch(model.reader, range(1))
    gallery = language_stage.make_gallery(model, range(1))
    batch = make_batch(model.reader, gallery, np.random.default_rng(0), size=1)
    for modules, loss in (
        ([model.vision_model, labeller], lambda: vision_stage.loss_of(model.vision_model, labeller, pixels, labels)),
        ([model.language_model], lambda: language_stage.loss_of(model, batch)),
    ):
        optimiser = Optimiser(list(torch.nn.ModuleList(modules).parameters()), 0.2, total=1000)
        first = loss().total.item()
        for _ in range(12):
            optimiser.step(loss().total)
        assert loss().total.item() < 0.8 * first


def test_a_stage_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def stage() -> Stage:
        return Stage(tmp_path / "stage.pt", torch.nn.ModuleList([torch.nn.Linear(3, 2)]), Steps(9, 0.1))

    def step(stage: Stage) -> None:
        stage.optimiser.step(stage.modules[0](torch.ones(3, dtype=torch.bfloat16)).square().sum())

    stopped, resumed = stage(), stage()
    for number in stopped.steps(lambda stage, fraction, figures: None):
        step(stopped)
        if number == 4:
            break
    stopped.save()
    assert next(iter(resumed.steps(lambda stage, fraction, figures: None))) == 5
    for again in (stopped, resumed):
        step(again)
    assert torch.equal(stopped.optimiser.exact[0], resumed.optimiser.exact[0])
    assert torch.equal(stopped.modules[0].weight, resumed.modules[0].weight)


def test_small_steps_add_up() -> None:
    """Steps too small for bfloat16 are not lost."""
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimiser = Optimiser([parameter], 1e-4, total=10_000)
    for _ in range(200):
        optimiser.step(parameter.sum())
    assert parameter.max() < 1


@pytest.mark.parametrize(("name", "config"), [("small", TINY), ("small-qwen2-vl", NATIVE)])
def test_the_command_trains_and_saves(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    config: dict[str, Any],
) -> None:
    """Two steps of every stage; run again, it finds nothing left to do."""
    few = Steps(2, 1e-3)
    monkeypatch.setitem(RECIPES, name, replace(RECIPES[name], vision=few, shallow=few, language=few, gallery=8))
    monkeypatch.setitem(CONFIGS, name, config)
    monkeypatch.setattr("tools.train_miniature.VALIDATION", 6)
    arguments = ["--only", name, "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    weights = []
    for _ in range(2):
        assert main(arguments) == 0
        weights.append((tmp_path / f"out/{name}/model.safetensors").read_bytes())
        assert f"checkpoint {name} is in" in capsys.readouterr().out
    assert weights[0] == weights[1]


@pytest.mark.parametrize("seed", ["-1", "20"])
def test_the_command_names_a_wrong_seed(capsys: pytest.CaptureFixture[str], seed: str) -> None:
    with pytest.raises(SystemExit):
        main(["--seed", seed])
    assert f"--seed {seed} is outside 0..19" in capsys.readouterr().err
