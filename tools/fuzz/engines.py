"""Engine directories whose manifest somebody changed."""

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from cattrs.preconf.json import make_converter

from engine.bindings import Scoring
from engine.config import ExitConfig, GuidanceConfig
from engine.families import family_of, published
from engine.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MODELS,
    ComponentRecord,
    EngineModel,
    FileRecord,
    Manifest,
    read_manifest,
)
from engine.target import Precision, Target
from engine.verification import check_files, verify
from tools.fuzz.mutate import json_bytes, spoil_json

NAME = "engines"


@cache
def manifest() -> dict[str, Any]:
    """What a build of the smallest published sizes writes, with components without files."""
    models = {}
    for name, size in zip(MODELS, ("1B", "2B"), strict=True):
        family, config = family_of(published(size))
        prune_layers = () if name == "small" else (1, 2)
        models[name] = EngineModel(
            family.read_config(published(size), config), "ab" * 32, prune_layers, Scoring.DEFERRED
        )
    built = Manifest(
        format_version=FORMAT_VERSION,
        engine_version="0.1.0",
        created="2025-01-02T03:04:05+00:00",
        target=Target.ONNXRUNTIME,
        precision=Precision.FP32,
        max_tokens=8192,
        max_batch=8,
        world_size=1,
        versions={"onnx": "1.19.0"},
        models=models,
        components={},
        guidance=GuidanceConfig(),
        exit=ExitConfig(),
    )
    record = ComponentRecord("ab" * 32, {"small/tokenizer.json": FileRecord(0, "cd" * 32)}, 1, 1.0)
    content = make_converter().unstructure(built)
    content["components"] = {name: make_converter().unstructure(record) for name in sorted(built.required())}
    return content


def make(seed: int) -> bytes:
    rng = random.Random(seed)
    content = manifest()
    for _ in range(rng.randint(1, 2)):
        content = spoil_json(rng, content)
    return json_bytes(rng, content)


def run(case: bytes) -> None:
    """Open the directory as `sgl info --verify` does."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        (directory / MANIFEST).write_bytes(case)
        built = read_manifest(directory)
        json.dumps([built.limits(name).sequence().max for name in MODELS])
        check_files(directory, built)
        verify(directory, built)
