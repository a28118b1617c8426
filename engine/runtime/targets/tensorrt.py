"""TensorRT, of either library: plans on a GPU, which sum over ranks by themselves."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from engine.manifest import Manifest
from engine.runtime.backend import cuda, installed
from engine.runtime.executor import AllReduce, Executor, Threads
from engine.target import Device, Target


@dataclass(frozen=True)
class TensorRtBackend:
    """See `Backend`."""

    rank_packages: ClassVar[tuple[str, ...]] = ("torch", "nccl4py", "nvidia-nccl-cu13")
    target: Target

    def require(self, directory: Path, manifest: Manifest, device: Device) -> None:
        self._executors(directory).require_runtime(directory, manifest)

    def require_gpu(self, directory: Path, manifest: Manifest, gpu: int) -> None:
        self._executors(directory).require_gpu(directory, manifest, gpu)

    def take(self, directory: Path, manifest: Manifest, local_rank: int, local_ranks: int) -> None:
        executors = self._executors(directory)
        executors.require_runtime(directory, manifest, local_rank, local_ranks)
        executors.use_gpu(local_rank)

    def share_threads(self, threads: int) -> Threads:
        """A plan needs none."""
        return threads

    def load(self, path: Path, threads: Threads, device: Device, records: bool, gpu: int | None) -> Executor:
        from engine.runtime.executor_tensorrt import TensorRtExecutor

        return TensorRtExecutor.load(self.target, path.with_suffix(self.target.traits.suffix), cuda(gpu), records)

    def load_rank(self, path: Path, threads: Threads, all_reduce: AllReduce) -> Executor:
        return self.load(path, threads, Device.CUDA, records=True, gpu=None)

    def _executors(self, directory: Path) -> ModuleType:
        with installed(directory, self.target):
            import engine.runtime.executor_tensorrt as executors
        return executors
