"""Engine directories to test with: a manifest whose two models are tiny and of odd sizes, and files that are none."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.bindings import Scoring
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, ScoreRows
from engine.engine_directory import MANIFEST, write_manifest
from engine.manifest import FORMAT_VERSION, ComponentRecord, EngineModel, FileRecord, Manifest, interface_of
from engine.model_config import (
    LanguageConfig,
    ModelConfig,
    Norm,
    PromptConfig,
    RopeConfig,
    RopeScaling,
    TilingConfig,
)
from engine.target import Precision, Target
from tests.tiny_vision import TINY_VISION

FILES = {
    "small/vision": {"small/vision.onnx": b"graph", "small/vision.weights": bytes(range(256)) * 40},
    "large/language/rank0": {"large/rank0/language.onnx": b"other graph"},
    "large/tokenizer": {"large/tokenizer.json": b""},
    **{name: {} for name in ("small/tokenizer", "small/language/rank0", "large/vision")},
}


def example_model(name: str, prune_layers: tuple[int, ...] = ()) -> EngineModel:
    rope = RopeConfig(
        theta=1e6,
        max_positions=77,
        scaling=RopeScaling.LONG,
        original_max_positions=33,
        short_factor=(1.0, 1.25),
        long_factor=(2.5, 4.5),
    )
    language = LanguageConfig(
        hidden_size=24,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        intermediate_size=40,
        vocab_size=101,
        norm_eps=1e-5,
        rope=rope,
    )
    vision = replace(TINY_VISION, norm=Norm.RMS, output_size=language.hidden_size)
    prompt = PromptConfig("internlm2-chat", system_message="你好 “quoted”")
    config = ModelConfig("internvl2", name, language, vision, TilingConfig(max_tiles=3), prompt)
    scoring = Scoring.OFF if prune_layers else Scoring.DEFERRED
    built = BuildConfig(Path(), Path(), Path(), precision=Precision.INT8)
    interface = interface_of(built, config, prune_layers, scoring)
    return EngineModel(config, "ab" * 32, prune_layers, scoring, interface)


def example_manifest(components: dict[str, ComponentRecord]) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        engine_version="0.1.0",
        created="2025-01-02T03:04:05+00:00",
        target=Target.ONNXRUNTIME,
        precision=Precision.INT8,
        max_tokens=513,
        max_batch=3,
        world_size=1,
        versions={"onnxruntime": "1.31.0"},
        models={"small": example_model("one"), "large": example_model("two", (1, 2))},
        components=components,
        guidance=GuidanceConfig(average_retention=1, prune_layer=2, score_rows=ScoreRows.LAST_PROMPT),
        exit=ExitConfig(exit_threshold=0.75),
        max_tiles=3,
    )


def write_engine(directory: Path) -> Path:
    """A directory with `FILES` and their manifest."""
    components = {}
    for name, files in FILES.items():
        records = {}
        for file, content in files.items():
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            (directory / file).write_bytes(content)
            records[file] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        components[name] = ComponentRecord("key of " + name, records, peak_bytes=123, seconds=1.5)
    write_manifest(directory, example_manifest(components))
    return directory


def edit(engine: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a manifest says, whatever it becomes."""
    content = json.loads((engine / MANIFEST).read_text(encoding="utf-8"))
    change(content)
    (engine / MANIFEST).write_text(json.dumps(content), encoding="utf-8")
