"""Random weights for a checkpoint directory of any family, of which `config.json` is there."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from engine.build.read_role import language_shapes, vision_shapes
from engine.families import Family, Source, read_model
from engine.model_config import ModelConfig
from tools.random_checkpoint import random_tensor, write_tokenizer

SHARD_BYTES = 1 << 29
TOKEN = re.compile(r"<[^<>\s]+>")


def tensor_shapes(family: Family, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a build reads of a checkpoint."""
    found: dict[str, tuple[int, ...]] = {}
    for sources, shapes in (
        (family.vision_sources(config, ()), vision_shapes(config.vision)),
        (family.language_sources(config, ()), language_shapes(config.language)),
    ):
        found |= _of_sources(sources, shapes)
    return found


def _of_sources(sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, (rows, *rest) in shapes.items():
        source = sources[name]
        if source.rows is None:
            found |= dict.fromkeys(source.tensors(), (rows // len(source.tensors()), *rest))
        else:
            # Several parameters lie in one tensor, one behind the other.
            before = found.get(source.tensor, (0,))[0]
            found[source.tensor] = (before + rows, *rest)
    return found


def write_weights(directory: Path, on_progress: Callable[[float], None], seed: int = 0) -> int:
    """Beside `config.json`, with a tokenizer -> bytes of the weights, in bfloat16."""
    family, config = read_model(directory)
    shapes, rng = tensor_shapes(family, config), np.random.default_rng(seed)
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    shard: dict[str, np.ndarray] = {}
    places: dict[str, str] = {}
    written = held = 0

    def flush() -> None:
        nonlocal written, held
        file = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, file))
        written, held = written + held, 0
        shard.clear()
        on_progress(written / total)

    for name, shape in shapes.items():
        shard[name] = random_tensor(rng, name, shape).astype(ml_dtypes.bfloat16)
        held += shard[name].nbytes
        if held >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    prompt = family.render_prompt(config, "?", [1])
    write_tokenizer(directory, tuple(dict.fromkeys(["<|endoftext|>", *prompt.stop, *TOKEN.findall(prompt.text)])))
    return total
