"""How long runs take by a roofline: what the figures of a chip allow at most."""

from dataclasses import replace

from engine.planning.chip import Chip
from engine.planning.load.times import Lines, ModelTimes, PairTimes, fitted
from engine.planning.model_plan import Call, ModelPlan
from engine.planning.pair_plan import PairPlan
from engine.planning.roofline import reduce_seconds
from engine.planning.workload import Workload

OUTSIDE = 0.02
"""Seconds to open a picture and to tokenize, assumed; the other threads do it."""
TEXTS = (64, 1024, 4096)
"""Tokens of the texts that calls are counted for, whose cost is a line through them."""
BATCHES = (1, 8)


def predicted_times(plan: PairPlan, chip: Chip) -> PairTimes:
    return PairTimes(_times(plan.small, chip, OUTSIDE), _times(plan.large.unpruned(), chip, 0.0))


def _times(model: ModelPlan, chip: Chip, outside: float) -> ModelTimes:
    steps, extends = [], []
    for text in TEXTS:
        question = Workload(tiles=1, text_tokens=text, new_tokens=1)
        tokens = question.prompt_tokens(model.config)
        for batch in BATCHES:
            steps.append((batch, batch * tokens, model.decode(replace(question, batch=batch))))
        extends.append((tokens, tokens * (tokens + 1) // 2, model.prefill(question)))
    encodes = [(tiles, 0, model.vision_call(Workload(tiles))) for tiles in (1, model.config.most_tiles())]
    world_size = model.shard.world_size
    step, extend, encode = (_lines(calls, chip, world_size) for calls in (steps, extends, encodes))
    return ModelTimes(step, extend, encode, outside=outside)


def _lines(calls: list[tuple[int, int, Call]], chip: Chip, world_size: int) -> Lines:
    """Of computing and of reading. calls: rows, pairs, and what they cost."""
    lines = []
    for rate, work in (
        (chip.matrix_rate, [call.operations for *_, call in calls]),
        (chip.bandwidth, [call.bytes for *_, call in calls]),
    ):
        lines.append(
            fitted(
                [
                    (rows, pairs, done / rate + reduce_seconds(call, chip, world_size))
                    for (rows, pairs, call), done in zip(calls, work, strict=True)
                ]
            )
        )
    return tuple(lines)
