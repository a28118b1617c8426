"""Which executor runs an engine, on which device and with how many threads; each is imported when it is needed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from engine.bindings import SCORING_ENGINE, Scoring
from engine.build_flags import BuildFlag
from engine.errors import EngineError, ManifestError, RequestError, Setting
from engine.gpu import DRIVER, has_driver
from engine.manifest import Manifest
from engine.runtime.executor import AllReduce, Executor
from engine.runtime.host_memory import free_memory
from engine.target import Device, Precision, Target


def resolve_threads(threads: int | None) -> int:
    """None is all cores that this process may use. Raises RequestError for fewer than 1 or more than there are."""
    cores = len(os.sched_getaffinity(0))
    if threads is None:
        return cores
    if not 1 <= threads <= cores:
        raise RequestError(
            Setting("threads"), f" {threads} is outside 1..{cores}, the cores of this process; choose one inside"
        )
    return threads


def kv_memory_here(device: Device) -> int | None:
    """Bytes that keys and values may take on this machine if nobody says: half of what is free. On a GPU it is what the
    engines take, None here.
    """
    return None if device is not Device.CPU else free_memory() // 2


def resolve_device(directory: Path, manifest: Manifest, device: Device | None) -> Device:
    """What runs an engine directory; None is what its target is for. Raises EngineError when it cannot run here."""
    target = manifest.target
    if device is None:
        device = target.devices()[0]
    check_device(directory, manifest, device)
    if device is Device.CUDA and target is Target.ONNXRUNTIME:
        with _named(directory, target):
            from engine.runtime.executor_onnxruntime_cuda import require_cuda
        require_cuda()
    elif device is Device.CUDA:
        _tensorrt(directory, target).require_runtime(directory, manifest)
    return device


def check_device(directory: Path, manifest: Manifest, device: Device) -> None:
    """Raises ManifestError for an engine directory that was not built for such a device."""
    target, possible = manifest.target, manifest.target.devices()
    if device not in possible:
        raise ManifestError(
            f"{directory} was built for target {target}, which runs on device {possible[0]} and not on {device}; "
            f"rebuild with {BuildFlag.TARGET} {Target.ONNXRUNTIME} to run it on a CPU"
        )
    if device is Device.CUDA and target is Target.ONNXRUNTIME:
        if manifest.world_size > 1:
            raise ManifestError(
                f"{directory} was built for world size {manifest.world_size}, and ranks of target {target} run on "
                f"device {Device.CPU} only; rebuild with {BuildFlag.TP} 1 or for target {Target.TENSORRT_RTX}"
            )
        if manifest.precision is not Precision.FP16:
            raise ManifestError(
                f"{directory} was built in precision {manifest.precision}, which target {target} runs on device "
                f"{Device.CPU} only; rebuild with {BuildFlag.PRECISION} {Precision.FP16} or for target "
                f"{Target.TENSORRT_RTX}"
            )


def take_gpu(directory: Path, manifest: Manifest, local_rank: int, local_ranks: int) -> None:
    """Make the GPU of this number this process's own, one of as many ranks on this machine. Raises EngineError."""
    runtime = _tensorrt(directory, manifest.target)
    runtime.require_runtime(directory, manifest, local_rank, local_ranks)
    runtime.use_gpu(local_rank)


def _tensorrt(directory: Path, target: Target) -> ModuleType:
    with _named(directory, target):
        import engine.runtime.executor_tensorrt as runtime
    return runtime


@contextmanager
def _named(directory: Path, target: Target) -> Iterator[None]:
    """What is not installed, on a machine where it would be of use. Raises EngineError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not has_driver():
            can_run = Device.CPU in target.devices()
            rebuilt = f"rebuild with {BuildFlag.TARGET} {Target.ONNXRUNTIME}"
            on_cpu = ("give ", Setting("device"), f" {Device.CPU}") if can_run else (rebuilt,)
            raise EngineError(
                f"{directory} was to run on an NVIDIA GPU, and no driver of one is here ({DRIVER} is missing); "
                "use a machine with a GPU, or ",
                *on_cpu,
                " to run it on a CPU",
            ) from None
        raise EngineError(
            f"target {target} runs on a GPU with {error.name}, which is not installed; pip install {error.name}"
        ) from None


def load(
    target: Target, path: Path, threads: int | None, device: Device = Device.CPU, records: bool = True
) -> Executor:
    """Load one compiled engine; `path` without the suffix that its target gives the file. Raises EngineError.

    threads: of the host's part of the work; None shares those of a process that has called `load_rank`. device: as
    `resolve_device` found it. records: whether its runs repeat with the same buffers, which is faster as CUDA graphs.
    """
    if target is Target.ONNXRUNTIME and device is Device.CUDA:
        from engine.runtime.executor_onnxruntime_cuda import CudaExecutor

        return CudaExecutor(path.with_suffix(".onnx"), threads)
    if target is Target.ONNXRUNTIME:
        from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor

        return OnnxRuntimeExecutor(path.with_suffix(".onnx"), threads)
    from engine.runtime.executor_tensorrt import TensorRtExecutor

    return TensorRtExecutor.load(target, path.with_suffix(".plan"), records=records)


def load_scoring(
    scoring: Scoring, target: Target, rank: Path, threads: int | None, device: Device = Device.CPU
) -> Executor | None:
    """The scoring engine beside a language engine in `rank`, if it has one. Raises EngineError."""
    if scoring is not Scoring.DEFERRED:
        return None
    return load(target, rank / SCORING_ENGINE, threads, device, records=False)


def load_rank(target: Target, path: Path, threads: int, all_reduce: AllReduce) -> Executor:
    """Load one rank's engine; once per process, which from then on loads engines that share `threads` only.

    all_reduce: for an engine that cannot sum over the ranks by itself.
    """
    if target is not Target.ONNXRUNTIME:
        return load(target, path, threads)
    from engine.runtime.executor_onnxruntime_stages import StagesExecutor

    return StagesExecutor(path.with_suffix(".onnx"), threads, all_reduce)
