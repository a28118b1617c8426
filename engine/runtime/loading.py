"""What runs an engine, on which device and with how many threads."""

import os
from pathlib import Path

from engine.bindings import SCORING_ENGINE, Scoring
from engine.build_flags import BuildFlag
from engine.errors import ManifestError, RequestError, Setting
from engine.manifest import Manifest
from engine.runtime.backend import Backend
from engine.runtime.executor import AllReduce, Executor, Threads
from engine.runtime.host_memory import free_memory
from engine.runtime.targets.onnxruntime import OnnxRuntimeBackend
from engine.runtime.targets.tensorrt import TensorRtBackend
from engine.target import Device, Target, targets_for

BACKENDS: dict[Target, Backend] = {
    Target.ONNXRUNTIME: OnnxRuntimeBackend(Target.ONNXRUNTIME),
    Target.TENSORRT_RTX: TensorRtBackend(Target.TENSORRT_RTX),
    Target.TENSORRT: TensorRtBackend(Target.TENSORRT),
}
"""What runs the engines of each target: one line for each."""


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
    if device is None:
        device = manifest.target.devices()[0]
    check_device(directory, manifest, device)
    BACKENDS[manifest.target].require(directory, manifest, device)
    return device


def check_device(directory: Path, manifest: Manifest, device: Device) -> None:
    """Raises ManifestError for an engine directory that was not built for such a device."""
    target, possible = manifest.target, manifest.target.devices()
    elsewhere = targets_for(device)[0]
    if device not in possible:
        raise ManifestError(
            f"{directory} was built for target {target}, which runs on device {possible[0]} and not on {device}; "
            f"rebuild with {BuildFlag.TARGET} {elsewhere} to run it on a {device.upper()}"
        )
    if manifest.world_size > 1 and device is not possible[0]:
        raise ManifestError(
            f"{directory} was built for world size {manifest.world_size}, and ranks of target {target} run on "
            f"device {possible[0]} only; rebuild with {BuildFlag.TP} 1 or for target {elsewhere}"
        )
    runs = target.traits.precisions
    if manifest.precision not in runs[device]:
        others = " and ".join(other for other in possible if manifest.precision in runs[other])
        raise ManifestError(
            f"{directory} was built in precision {manifest.precision}, which target {target} runs on device "
            f"{others} only; rebuild with {BuildFlag.PRECISION} {' or '.join(runs[device])} or for target {elsewhere}"
        )


def gpus_of(manifest: Manifest, small_apart: bool) -> int:
    """GPUs that a process uses: one for each rank of the large model, and perhaps one more for the small model."""
    return manifest.world_size + small_apart


def small_gpu(directory: Path, manifest: Manifest, device: Device, small_apart: bool) -> int | None:
    """The GPU of the small model, by its number among those that this process sees; None is the large model's first.

    Raises EngineError when there is none behind the large model's, or it runs no such engine.
    """
    if not small_apart:
        return None
    if device is not Device.CUDA:
        raise RequestError(
            Setting("small_apart"),
            f" gives the small model a GPU of its own, and {directory} runs on device {device}; ",
            "leave it out",
        )
    gpu = gpus_of(manifest, small_apart) - 1
    BACKENDS[manifest.target].require_gpu(directory, manifest, gpu)
    return gpu


def take_device(directory: Path, manifest: Manifest, local_rank: int, local_ranks: int) -> None:
    """Make what the rank of this number here, one of as many, runs on this process's own. Raises EngineError."""
    BACKENDS[manifest.target].take(directory, manifest, local_rank, local_ranks)


def share_threads(target: Target, threads: int) -> Threads:
    """Threads for all engines that this process loads with them; once in a process."""
    return BACKENDS[target].share_threads(threads)


def load(
    target: Target,
    path: Path,
    threads: Threads,
    device: Device = Device.CPU,
    gpu: int | None = None,
    records: bool = True,
) -> Executor:
    """Load one compiled engine; `path` without the suffix that its target gives the file. Raises EngineError.

    threads: of the host's part of the work. device: as `resolve_device` found it. gpu: as `small_gpu` found it.
    records: whether its runs repeat with the same buffers, which is faster as CUDA graphs.
    """
    return BACKENDS[target].load(path, threads, device, records, gpu)


def load_scoring(
    scoring: Scoring,
    target: Target,
    rank: Path,
    threads: Threads,
    device: Device = Device.CPU,
    gpu: int | None = None,
) -> Executor | None:
    """The scoring engine beside a language engine in `rank`, if it has one. Raises EngineError."""
    if scoring is not Scoring.DEFERRED:
        return None
    return load(target, rank / SCORING_ENGINE, threads, device, gpu, records=False)


def load_rank(target: Target, path: Path, threads: Threads, all_reduce: AllReduce) -> Executor:
    """Load one rank's engine. all_reduce: for one that cannot sum over the ranks by itself. Raises EngineError."""
    return BACKENDS[target].load_rank(path, threads, all_reduce)
