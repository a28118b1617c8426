"""Say what an engine directory holds: models, prune layers, sizes, fingerprints, versions, quantization."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.command_line import run_command
from engine.engine_directory import CONVERTER, read_manifest
from engine.errors import ManifestError
from engine.json_file import Unreadable, read_json
from engine.manifest import EngineModel, Manifest
from engine.model_config import LanguageConfig, VisionConfig
from engine.units import size_text
from engine.verification import check_files, verify

if TYPE_CHECKING:
    from engine.build.layer_report import LayerReport

QUANTIZATION = ".quantization.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR")
    parser.add_argument("--json", action="store_true", help="print the manifest and more as one JSON object")
    parser.add_argument("--layers", action="store_true", help="show what a plan's compiler made one kernel of")
    parser.add_argument(
        "--verify", action="store_true", help="compute the hash of every file again; else sizes are compared"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print it, and return the exit status."""
    return run_command(lambda: info(arguments))


def info(arguments: argparse.Namespace) -> None:
    """Raises ManifestError."""
    manifest = read_manifest(arguments.engine)
    if arguments.verify:
        verify(arguments.engine, manifest, full=True)
    else:
        check_files(arguments.engine, manifest)
    reports = read_quantization(arguments.engine, manifest)
    layers: dict[str, LayerReport] = {}
    if arguments.layers:
        # Only here: asking a question imports nothing of the build.
        from engine.cli.describe_layers import describe_layers, read_layers

        layers = read_layers(arguments.engine, manifest)
    if arguments.json:
        content = to_json(manifest, reports, arguments.verify)
        if layers:
            content["layers"] = CONVERTER.unstructure(layers)
        print(json.dumps(content, ensure_ascii=False, allow_nan=False))
        return
    print(describe(arguments.engine, manifest, reports, arguments.verify))
    for file, report in layers.items():
        print("\n    ".join((f"  layers      {file}", *describe_layers(report))))


def read_quantization(directory: Path, manifest: Manifest) -> dict[str, Any]:
    """Path in the engine directory -> the report that the build wrote there."""
    files = [file for component in manifest.components.values() for file in component.files]
    reports: dict[str, Any] = {}
    for file in sorted(file for file in files if file.endswith(QUANTIZATION)):
        try:
            reports[file] = read_json(directory / file)
            quantization_text(reports[file])
        except (OSError, Unreadable, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ManifestError(
                f"{directory / file} is no quantization report ({error!r}); sgl info --verify says what to rebuild"
            ) from None
    return reports


def to_json(manifest: Manifest, reports: dict[str, Any], verified: bool) -> dict[str, Any]:
    """The manifest's own keys, `bytes` in all, `quantization` reports by file, and whether hashes were `verified`."""
    content: dict[str, Any] = CONVERTER.unstructure(manifest)
    return content | {"bytes": manifest.total_bytes(), "quantization": reports, "verified": verified}


def describe(directory: Path, manifest: Manifest, reports: dict[str, Any], verified: bool) -> str:
    lines = [
        f"{directory}: {manifest.target} {manifest.precision}{f' for {manifest.gpu}' if manifest.gpu else ''}, "
        f"{size_text(manifest.total_bytes())}, "
        f"built {manifest.created} by sgl-engine {manifest.engine_version}",
        f"  limits      {manifest.max_tokens} tokens · {manifest.max_batch} questions at once "
        f"· world size {manifest.world_size}",
    ]
    for role, model in manifest.models.items():
        lines += describe_model(role, model)
    lines.append("  components")
    for name, component in manifest.components.items():
        lines.append(
            f"    {name:22} {size_text(component.total_bytes()):>9}  key {component.key[:12]}  "
            f"built in {component.seconds:.1f} s, peak {size_text(component.peak_bytes)}"
        )
    for name, report in reports.items():
        lines.append(f"  quantized   {name}: {quantization_text(report)}")
    versions = " · ".join(f"{name} {version}" for name, version in manifest.versions.items())
    lines += [
        f"  guidance    {settings(manifest.guidance)}",
        f"  early exit  {settings(manifest.exit)}",
        f"  versions    {versions}",
    ]
    if verified:
        count = sum(len(component.files) for component in manifest.components.values())
        lines.append(f"  verified    all {count} files have the recorded SHA-256")
    return "\n".join(lines)


def describe_model(role: str, model: EngineModel) -> list[str]:
    config = model.config
    layers = ", ".join(map(str, (0, *model.prune_layers)))
    scores = "emits attention scores" if model.scores else "emits no scores"
    return [
        f"  {role:10}  {config.family} {config.name} · checkpoint {model.checkpoint_sha256[:12]} · {scores}",
        f"    language  {language_text(config.language)}",
        f"    vision    {vision_text(config.vision)}",
        f"    tiles     {config.tiling.min_tiles} to {config.tiling.max_tiles}"
        + (" and a thumbnail" if config.tiling.thumbnail else ""),
        f"    prunes    before layer {layers}",
    ]


def language_text(config: LanguageConfig) -> str:
    return (
        f"{config.num_layers} layers · width {config.hidden_size} · heads {config.num_heads} "
        f"(key-value {config.num_kv_heads}) · vocabulary {config.vocab_size}"
    )


def vision_text(config: VisionConfig) -> str:
    return (
        f"{config.num_layers} layers · width {config.hidden_size} · {config.image_size} px tiles "
        f"· {config.tokens_per_tile()} tokens per tile"
    )


def quantization_text(report: dict[str, Any]) -> str:
    """A `QuantizationReport` in a line: which kernels the matrices got, and how close the result is to float32's."""
    matrices = report["matrices"]
    kernels = Counter(matrix["kernel"] for matrix in matrices.values())
    counts = ", ".join(f"{count} {kernel}" for kernel, count in kernels.most_common())
    cosines = {
        name: matrix["fidelity"][matrix["kernel"]]["cosine"]
        for name, matrix in matrices.items()
        if matrix["kernel"] in matrix["fidelity"]
    }
    worst = min(cosines, key=lambda name: cosines[name], default=None)
    return f"{len(matrices)} matrices ({counts}) · cosine of {report['output']} {report['fidelity']['cosine']:.6f}" + (
        f" · lowest of a matrix {cosines[worst]:.6f} ({worst})" if worst is not None else ""
    )


def settings(config: object) -> str:
    return " · ".join(f"{name} {value}" for name, value in vars(config).items() if value is not None)
