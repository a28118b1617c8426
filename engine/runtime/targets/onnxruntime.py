"""ONNX Runtime: on the CPU, there also as ranks; in one precision on a GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from engine.manifest import Manifest
from engine.runtime.backend import installed
from engine.runtime.executor import AllReduce, Executor, SharedThreads, Threads
from engine.target import Device, Target


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """See `Backend`."""

    rank_packages: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    target: Target

    def require(self, directory: Path, manifest: Manifest, device: Device) -> None:
        if device is Device.CUDA:
            with installed(directory, self.target):
                from engine.runtime.executor_onnxruntime_cuda import require_cuda
            require_cuda()

    def require_gpu(self, directory: Path, manifest: Manifest, gpu: int) -> None:
        from engine.runtime.gpu_buffers import require_gpus

        require_gpus(directory, gpu + 1)

    def take(self, directory: Path, manifest: Manifest, local_rank: int, local_ranks: int) -> None:
        """Ranks share the cores of their machine."""

    def share_threads(self, threads: int) -> SharedThreads:
        from engine.runtime.executor_onnxruntime_session import share_threads

        return share_threads(threads)

    def load(self, path: Path, threads: Threads, device: Device, records: bool, gpu: int | None) -> Executor:
        file = path.with_suffix(self.target.traits.suffix)
        if device is Device.CUDA:
            from engine.runtime.executor_onnxruntime_cuda import CudaExecutor

            return CudaExecutor.load(file, threads, gpu)
        from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor

        return OnnxRuntimeExecutor.load(file, threads)

    def load_rank(self, path: Path, threads: Threads, all_reduce: AllReduce) -> Executor:
        from engine.runtime.executor_onnxruntime_stages import StagesExecutor

        return StagesExecutor.load(path.with_suffix(self.target.traits.suffix), threads, all_reduce)
