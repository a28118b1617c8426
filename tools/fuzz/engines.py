"""Engine directories in which somebody changed a file and the manifest's record of it, or the manifest itself."""

import hashlib
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

from engine.bindings import Scoring
from engine.build.layer_report import Layer, LayerReport
from engine.cli.describe_layers import describe_layers, read_layers
from engine.cli.info import describe, read_quantization, to_json
from engine.config import BuildConfig, ExitConfig, GuidanceConfig
from engine.engine_directory import CONVERTER, MANIFEST, STAMP, read_manifest
from engine.families import published, read_model
from engine.manifest import FORMAT_VERSION, MODELS, EngineModel, Manifest, interface_of
from engine.remedy import rebuild
from engine.runtime.tokenizer import Tokenizer
from engine.target import Precision, Target
from engine.verification import check_files, verify
from tools.fuzz.checkpoint_files import library_layout
from tools.fuzz.mutate import json_bytes, spoil_bytes, spoil_json
from tools.fuzz.scratch import scratch

NAME = "engines"
TOKENIZER = "small/tokenizer.json"


@cache
def files() -> dict[str, bytes]:
    """All that is read of an engine before its engines are loaded, beside the manifest."""
    matrices = {"q": {"kernel": "rows", "fidelity": {"rows": {"cosine": 0.9}}}}
    quantization = {"matrices": matrices, "output": "logits", "fidelity": {"cosine": 0.99}}
    layers = LayerReport(10, 9, (1, 2), (Layer("a", "kgen", 0, ("[ONNX Layer: x]",)), Layer("b", "mha", 1, ())))
    return {
        TOKENIZER: library_layout()["tokenizer.json"],
        "large/rank0/language.quantization.json": json.dumps(quantization).encode(),
        "large/rank0/language.layers.json": json.dumps(CONVERTER.unstructure(layers)).encode(),
    }


@cache
def models() -> dict[str, EngineModel]:
    """Of the smallest published sizes."""
    found = {}
    for name, size in zip(MODELS, ("InternVL2-1B", "InternVL2-2B"), strict=True):
        config = read_model(published(size))[1]
        prune_layers = () if name == "small" else (1, 2)
        interface = interface_of(BuildConfig(Path(), Path(), Path()), config, prune_layers, Scoring.DEFERRED)
        found[name] = EngineModel(config, "ab" * 32, prune_layers, Scoring.DEFERRED, interface)
    return found


@cache
def bare_manifest() -> dict[str, Any]:
    """What a build would write, as parsed JSON, without components."""
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
        models=models(),
        components={},
        guidance=GuidanceConfig(),
        exit=ExitConfig(),
    )
    content: dict[str, Any] = CONVERTER.unstructure(built)
    return content


def manifest(held: dict[str, bytes]) -> dict[str, Any]:
    """What a build of these files would write, as parsed JSON."""
    records = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in held.items()}
    components = {}
    for model in MODELS:
        for part in ("tokenizer", "vision", "language/rank0"):
            mine = {name: record for name, record in records.items() if name.startswith(model)}
            files_of = mine if part == "language/rank0" else {}
            components[f"{model}/{part}"] = {"key": "ab", "files": files_of, "peak_bytes": 1, "seconds": 1.0}
    return bare_manifest() | {"components": components}


def make(seed: int) -> dict[str, str]:
    """A file's name, and what is there in its place, in Latin-1."""
    rng = random.Random(seed)
    name = rng.choice([MANIFEST] * 5 + [STAMP] + list(files()))
    held: Any = manifest(files()) if name == MANIFEST else json.loads(files().get(name, b"{}"))
    if rng.random() < 0.1:
        return {name: spoil_bytes(rng, json.dumps(held).encode()).decode("latin-1")}
    for _ in range(rng.randint(1, 2)):
        held = spoil_json(rng, held)
    return {name: json_bytes(rng, held).decode("latin-1")}


def run(case: dict[str, str]) -> None:
    """Open the directory as `sgl info --verify --layers` does, and its tokenizer."""
    held = files() | {name: text.encode("latin-1") for name, text in case.items()}
    if MANIFEST not in held:
        held[MANIFEST] = json.dumps(manifest({name: held[name] for name in files()})).encode()
    with scratch() as directory:
        for name, data in held.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(data)
        built = read_manifest(directory)
        assert len(rebuild(directory, built).splitlines()) == 1
        check_files(directory, built)
        verify(directory, built)
        reports = read_quantization(directory, built)
        describe(directory, built, reports, verified=True)
        json.dumps(to_json(built, reports, verified=True), allow_nan=False)
        for report in read_layers(directory, built).values():
            describe_layers(report)
        tokenizer = Tokenizer.load(directory / TOKENIZER)
        tokenizer.decode(tokenizer.encode("a cab"))
