"""A declared engine to a TensorRT plan: ONNX with weights on disk, the builder in its own process, its report."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir

import engine
from engine.bindings import Bindings
from engine.build.compiler import DeclaredEngine, Progress
from engine.build.layer_report import REPORT_SUFFIX
from engine.build.targets import tensorrt_compiler
from engine.build.targets.tensorrt_compiler import FAILED, OS_ERROR, Job, Profile
from engine.build.targets.tensorrt_weights import write_weights
from engine.build.weight_file import WeightFile
from engine.dims import Dim, Phase, Size
from engine.engine_directory import write_json
from engine.errors import EngineError
from engine.plugins.function import uses_plugins
from engine.target import Precision, Target

WEIGHTS_SHARE = 0.5
"""Of the progress, about; the builder reports none."""


def write_plan(
    target: Target,
    precision: Precision,
    declared: DeclaredEngine,
    directory: Path,
    name: str,
    on_progress: Progress,
    *,
    timing: tuple[Path, Path] | None = None,
    flags: tuple[str, ...] = (),
) -> None:
    """Write `name`.plan and `name`.layers.json. Raises EngineError, OSError.

    timing: file of an earlier build's measurements, if it is there, and the file to write them to; flags: of the
    builder, by name.
    """
    declared.reader.check(declared.graph)
    onnx, weights = directory / f"{name}.onnx", directory / f"{name}.weights"
    job_file = directory / f"{name}.job.json"
    with WeightFile(weights) as file:
        write_weights(declared.graph, declared.reader, file, precision, lambda done: on_progress(WEIGHTS_SHARE * done))
    ir.save(declared.graph, onnx)
    job = Job(
        target=target,
        onnx=onnx,
        weights=weights,
        plan=(directory / name).with_suffix(target.traits.suffix),
        report=directory / f"{name}{REPORT_SUFFIX}",
        profiles=make_profiles(declared.bindings),
        plugins=uses_plugins(declared.graph),
        timing=timing,
        flags=flags,
    )
    write_json(job_file, job)
    run_compiler(job, job_file)
    for intermediate in (job_file, onnx, weights):
        intermediate.unlink()
    on_progress(1.0)


def make_profiles(bindings: Bindings) -> tuple[Profile, ...]:
    """One for each phase in which dimensions differ."""
    prefill, decode = (_profile(bindings, phase) for phase in (Phase.PREFILL, Phase.DECODE))
    return (prefill,) if prefill == decode else (prefill, decode)


def _profile(bindings: Bindings, phase: Phase) -> Profile:
    shapes = {}
    for binding in bindings.inputs:
        if any(isinstance(size, Dim) for size in binding.dims):
            dims = [_range(size, phase) for size in binding.dims]
            shapes[binding.name] = (
                tuple(dim.min for dim in dims),
                tuple(dim.opt for dim in dims),
                tuple(dim.max for dim in dims),
            )
    return Profile(shapes)


def _range(size: Size, phase: Phase) -> Dim:
    return Dim("", size, size, size) if isinstance(size, int) else size.during(phase)


def run_compiler(job: Job, job_file: Path) -> None:
    """Raises EngineError with what the compiler said, OSError where it could not write."""
    # The package that runs now, wherever it was imported from. A session of its own: Ctrl-C is for this process, which
    # then ends the other.
    places = filter(None, (str(Path(engine.__file__).parents[1]), os.environ.get("PYTHONPATH")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-m", tensorrt_compiler.__name__, str(job_file)]
    done = subprocess.run(command, env=environment, start_new_session=True, capture_output=True, text=True)
    last = (done.stderr.splitlines() or ["no reason given"])[-1]
    if done.returncode == OS_ERROR:
        raise OSError(int(last), os.strerror(int(last)), str(job.plan))
    if done.returncode == FAILED:
        raise EngineError(last)
    if done.returncode:
        reason = f"status {done.returncode}: {last}"
        if done.returncode == -9:
            reason = f"it was killed, which happens when memory runs out ({os.strerror(errno.ENOMEM)})"
        raise EngineError(f"the compiler of target {job.target} ended while it compiled {job.onnx.stem} ({reason})")
