"""The process that runs a TensorRT builder: `python -m engine.build.targets.tensorrt_compiler JOB`.

A process of its own, because the builder may abort, cannot be interrupted, and keeps the memory that it used.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.build.layer_report import parse_log
from engine.engine_directory import read_json, write_json
from engine.errors import EngineError
from engine.gpu import find_gpu
from engine.target import Target
from engine.tensorrt_library import load_library

PR_SET_PDEATHSIG = 1
FAILED, OS_ERROR = 2, 3
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Least, typical and largest shape of each dynamic input."""

    shapes: dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Job:
    """onnx, weights: the graph in two files; plan, report: files to write.

    timing: measurements of an earlier build, if they are there, and the file to write them to; flags: of the builder.
    """

    target: Target
    onnx: Path
    weights: Path
    plan: Path
    report: Path
    profiles: tuple[Profile, ...]
    plugins: bool
    timing: tuple[Path, Path] | None = None
    flags: tuple[str, ...] = ()


def compile_plan(job: Job) -> None:
    """Raises EngineError with the first thing that the builder complained about."""
    library = load_library(job.target)
    log = make_log(library)
    builder = library.Builder(log)
    flags = library.NetworkDefinitionCreationFlag
    network_flags = 1 << int(flags.STRONGLY_TYPED)
    if job.plugins:
        register_our_plugins()
        network_flags |= 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)
    network = builder.create_network(network_flags)
    parser = library.OnnxParser(network, log)
    if not parser.parse_from_file(str(job.onnx)):
        raise failure(job, log.errors or [parser.get_error(0).desc()])
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    for flag in job.flags:
        config.set_flag(getattr(library.BuilderFlag, flag))
    if job.plugins:
        config.set_preview_feature(library.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    for profile in job.profiles:
        shapes = builder.create_optimization_profile()
        for name, (least, typical, most) in profile.shapes.items():
            shapes.set_shape(name, least, typical, most)
        config.add_optimization_profile(shapes)
    if job.timing is not None:
        use_measurements(config, job.timing[0])
    with job.plan.open("wb") as file:
        writer = make_writer(library, file)
        if not builder.build_serialized_network_to_stream(network, config, writer):
            raise writer.error or failure(job, log.errors)
    if job.timing is not None:
        job.timing[1].write_bytes(config.get_timing_cache().serialize())
    write_json(job.report, parse_log(log.messages, job.weights.stat().st_size))


def register_our_plugins() -> None:
    """For the GPU of this machine. Only here: a graph without plugins is compiled without Triton."""
    from engine.plugins.tensorrt_plugins import register_plugins

    register_plugins(find_gpu().capability())


def use_measurements(config: Any, path: Path) -> None:
    """Those of an earlier build; of another GPU or version they are refused, and none are used."""
    earlier = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(earlier), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def failure(job: Job, errors: Sequence[str]) -> EngineError:
    reason = " ".join(errors[0].split()) if errors else "no reason given"
    return EngineError(f"target {job.target} cannot compile {job.onnx.stem} ({reason}); report it with this message")


def make_log(library: Any) -> Any:
    """A logger that keeps every message, and errors apart."""

    class Log(library.ILogger):
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def make_writer(library: Any, file: Any) -> Any:
    """A stream into an open file; `error` is what stopped it."""

    class Writer(library.IStreamWriter):
        def __init__(self) -> None:
            library.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return int(file.write(data))
            except OSError as error:  # the library cannot pass it on
                self.error = error
                return 0

    return Writer()


def main(argv: Sequence[str]) -> int:
    """0; FAILED and one sentence on stderr when the engine cannot be compiled; OS_ERROR and the error's number."""
    # A builder that is killed takes its compiler along.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        compile_plan(read_json(Path(argv[0]), Job))
    except EngineError as error:
        print(error, file=sys.stderr)
        return FAILED
    except OSError as error:
        print(error.errno, file=sys.stderr)
        return OS_ERROR
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(status)  # the library's own clean-up at exit is of no use here, and takes time
