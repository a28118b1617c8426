"""A compiler's layer report in words: which nodes of the graph became one kernel."""

from collections import Counter
from pathlib import Path

from engine.build.layer_report import REPORT_SUFFIX, Layer, LayerReport, node_label
from engine.dims import Phase
from engine.engine_directory import read_json
from engine.errors import ManifestError
from engine.manifest import Manifest
from engine.remedy import rebuild
from engine.units import size_text


def read_layers(directory: Path, manifest: Manifest) -> dict[str, LayerReport]:
    """Path in the engine directory -> the layer report that the build wrote there. Raises ManifestError."""
    files = [file for component in manifest.components.values() for file in component.files]
    files = [file for file in files if file.endswith(REPORT_SUFFIX)]
    for file in files:
        if not (directory / file).is_file():
            raise ManifestError(f"{directory / file} is missing; {rebuild(directory, manifest)}")
    reports = {file: read_json(directory / file, LayerReport) for file in files}
    if not reports:
        raise ManifestError(
            f"{directory} is for target {manifest.target}, which compiles nothing ahead of time and has no layers to "
            "show; leave --layers out"
        )
    return reports


def describe_layers(report: LayerReport) -> list[str]:
    """A line for each kind of kernel and phase, with how often it is there; decoder layers count as one kind."""
    lines = [f"stores {size_text(report.weight_bytes)} of weights, was given {size_text(report.given_bytes)}"]
    for profile, scratch in enumerate(report.scratch_bytes):
        layers = report.of_profile(profile)
        attentions = sum(layer.is_fused_attention() for layer in layers)
        phase = list(Phase)[profile] if len(report.scratch_bytes) == len(Phase) else "every call"
        scratch_text = f"{size_text(scratch)} of scratch memory"
        lines.append(f"{phase}: {len(layers)} kernels, {attentions} of them fused attention, {scratch_text}")
        kinds = Counter(f"{layer.kernel():15} {_nodes_text(layer)}" for layer in layers)
        lines += [f"{count:5} x {kind}" for kind, count in kinds.items()]
    return lines


def _nodes_text(layer: Layer) -> str:
    """`layers.*.self_attn.q_proj (MatMul) + …`; what serves other kernels computes no node."""
    operators: dict[str, list[str]] = {}
    for node in layer.nodes:
        label = node_label(node)
        split = max(label.rfind("."), label.rfind(":"))
        operators.setdefault(label[: max(split, 0)], []).append(label[split + 1 :])
    if not operators:
        return "(no node)"
    return " + ".join(f"{path or 'graph'} ({', '.join(dict.fromkeys(names))})" for path, names in operators.items())
