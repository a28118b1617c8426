"""A small model of one family guides a large one of another: importance from grid to grid, and what is then said.

Everything is computed once more from transformers' eager models, and resampled pair of tokens by pair.
"""

from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig
from engine.runtime.guidance import SCALE_STEP, keep_rows, resample
from engine.runtime.model import Seen
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import Pruning
from engine.runtime.question import Question
from tests import saved_internvl, saved_llava_onevision, saved_qwen2_vl
from tests.eager import Saved, importance, pruned_answer
from tests.whole import QUESTION, noise, read

NEW_TOKENS = 6
RATIO = 0.3
FAMILIES: dict[str, Callable[[Path, int], Any]] = {
    "internvl": lambda directory, seed: saved_internvl.save(directory, "qwen3", seed=seed),
    "qwen2_vl": lambda directory, seed: saved_qwen2_vl.save(directory, seed=seed),
    "llava_onevision": lambda directory, seed: saved_llava_onevision.save(directory, max_tiles=3, seed=seed),
}
PICTURES = {"one": [(85, 40)], "a small one": [(28, 28)], "two": [(60, 20), (33, 70)]}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Saved]:
    """Of each family a small one and a large one."""
    saved = {}
    for name, save in FAMILIES.items():
        for seed, role in enumerate(("small", "large")):
            saved[name, role] = save(tmp_path_factory.mktemp(f"{name}-{role}"), seed)
    return saved


@pytest.fixture(scope="module", params=permutations(FAMILIES, 2), ids=" guides ".join)
def pair(
    request: pytest.FixtureRequest, checkpoints: dict[tuple[str, str], Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[SglPipeline, Saved, Saved]:
    small, large = (checkpoints[name, role] for name, role in zip(request.param, ("small", "large"), strict=True))
    out = tmp_path_factory.mktemp("built") / "engine"
    build_pair(BuildConfig(small.directory, large.directory, out, max_tokens=512, max_batch=2, prune_layers=(2,)))
    return SglPipeline.load(out, threads=1), small, large


def scales(boxes: np.ndarray) -> Iterator[np.ndarray]:
    """Tokens of similar area, finest first."""
    area = np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1)
    left = np.argsort(area, kind="stable")
    while len(left):
        stop = next((i for i in range(1, len(left)) if area[left[i]] > area[left[i - 1]] * SCALE_STEP), len(left))
        yield left[:stop]
        left = left[stop:]


def carried(values: np.ndarray, known: Seen, wanted: Seen) -> np.ndarray:
    """[V] -> [W]: what falls into each box of the other model, pair by pair."""
    total = np.zeros(len(wanted.grid.boxes))
    for image in range(len(known.pieces)):
        mine, theirs = (np.flatnonzero(seen.grid.images == image) for seen in (known, wanted))
        sources = [mine[scale] for scale in scales(known.grid.boxes[mine])]
        targets = [theirs[scale] for scale in scales(wanted.grid.boxes[theirs])]
        for index, source in enumerate(sources):
            for place, target in enumerate(targets):
                if len(sources) == len(targets) and index != place:
                    continue
                share = 1.0 if len(sources) == len(targets) else len(target) / len(theirs)
                for token in target:
                    box, boxes = (
                        wanted.grid.boxes[token].astype(np.float64),
                        known.grid.boxes[source].astype(np.float64),
                    )
                    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
                    part = np.prod(np.maximum(sides, 0), axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
                    total[token] += share * (part * values[source]).sum()
    return total


@pytest.mark.parametrize("sizes", PICTURES.values(), ids=PICTURES)
def test_the_large_model_keeps_what_the_small_one_looked_at(
    pair: tuple[SglPipeline, Saved, Saved], sizes: list[tuple[int, int]]
) -> None:
    pipeline, small, large = pair
    images = [noise(*size) for size in sizes]
    question = Question(
        tuple(images),
        QUESTION,
        GuidanceConfig(retention_ratio=RATIO, prune_layer=2),
        ExitConfig(exit_threshold=2.0),
        SamplingConfig(max_new_tokens=NEW_TOKENS),
    )
    (answer,) = pipeline.answer_batch([question])
    known, guiding = read(pipeline.small, images, NEW_TOKENS)
    wanted, guided = read(pipeline.large, images, NEW_TOKENS)
    everything = Pruning(0, np.arange(len(guiding.ids)))
    said = pruned_answer(small, guiding, everything, NEW_TOKENS)
    end = pipeline.small.tokenizer.token_id("<|im_end|>")
    said = said[: said.index(end) + 1] if end in said else said
    assert answer.small_text == pipeline.small.tokenizer.decode(said)

    expected = carried(importance(small, images, QUESTION, guiding, said), known, wanted)
    assert answer.importance is not None
    assert_allclose(answer.importance, expected, rtol=1e-3, atol=1e-5)
    assert answer.visual_tokens == len(expected)

    kept = answer.kept
    assert kept is not None
    assert len(kept) == max(1, int(len(expected) * RATIO + 1e-9))
    dropped = np.setdiff1d(np.arange(len(expected)), kept)
    assert expected[kept].min() >= expected[dropped].max() - 1e-4 * expected.max()
    rows = keep_rows(guided.visual_positions, kept, len(guided.ids))
    assert list(answer.token_ids) == pruned_answer(large, guided, Pruning(2, rows), len(answer.token_ids))


@pytest.mark.parametrize("sizes", PICTURES.values(), ids=PICTURES)
def test_an_even_look_prefers_no_token(pair: tuple[SglPipeline, Saved, Saved], sizes: list[tuple[int, int]]) -> None:
    """Of those of one scale, each receives by as much as lies in its picture; beside it, nobody looked."""
    pipeline, *_ = pair
    known, wanted = (
        read(model, [noise(*size) for size in sizes], NEW_TOKENS)[0].grid for model in (pipeline.small, pipeline.large)
    )
    area = np.prod(known.boxes[:, 2:].astype(np.float64) - known.boxes[:, :2], axis=1)
    spread = resample(area.astype(np.float32), known, wanted)
    for image in range(len(sizes)):
        mine = np.flatnonzero(wanted.images == image)
        for scale in scales(wanted.boxes[mine]):
            boxes, found = wanted.boxes[mine[scale]], spread[mine[scale]]
            inside = np.prod(np.diff(np.clip(boxes.reshape(-1, 2, 2), 0, 1), axis=1), axis=(1, 2))
            assert_allclose(found, inside * (found.max() / inside.max()), rtol=1e-3, atol=1e-5 * found.max())
