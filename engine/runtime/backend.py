"""What runs the engines of a target, as the rest of the runtime sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Protocol

from engine.build_flags import BuildFlag
from engine.errors import EngineError, Setting
from engine.gpu import DRIVER, has_driver
from engine.manifest import Manifest
from engine.runtime.executor import AllReduce, Executor, Threads
from engine.target import Device, Target, targets_for


class Backend(Protocol):
    """What it needs is imported when it is asked for something. Paths of engines are without suffix."""

    rank_packages: ClassVar[tuple[str, ...]]
    """Those whose versions must be the same on all ranks; that of a plan's library is the manifest's."""

    def require(self, directory: Path, manifest: Manifest, device: Device) -> None:
        """Raises EngineError unless this machine runs such an engine directory on the device."""

    def require_gpu(self, directory: Path, manifest: Manifest, gpu: int) -> None:
        """Raises EngineError unless there is a GPU of this number, and it runs such an engine directory as well."""

    def take(self, directory: Path, manifest: Manifest, local_rank: int, local_ranks: int) -> None:
        """Make what the rank of this number here runs on this process's own. Raises EngineError."""

    def share_threads(self, threads: int) -> Threads:
        """Threads for all engines that this process loads with them; once in a process."""

    def load(self, path: Path, threads: Threads, device: Device, records: bool, gpu: int | None) -> Executor:
        """gpu: its number among those that the process sees; None is the one that it took. Raises EngineError."""

    def load_rank(self, path: Path, threads: Threads, all_reduce: AllReduce) -> Executor:
        """A rank's engine, which sums with all_reduce unless it does so itself. Raises EngineError."""


def cuda(gpu: int | None) -> str:
    """Torch's name of the GPU of this number; None is the one that the process took."""
    return "cuda" if gpu is None else f"cuda:{gpu}"


@contextmanager
def installed(directory: Path, target: Target) -> Iterator[None]:
    """What is not installed, on a machine where it would be of use. Raises EngineError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not has_driver():
            can_run = Device.CPU in target.devices()
            rebuilt = f"rebuild with {BuildFlag.TARGET} {targets_for(Device.CPU)[0]}"
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
