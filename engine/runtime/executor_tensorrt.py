"""Executor of TensorRT plans, of either package: buffers are torch tensors, everything runs in one CUDA stream."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.build_flags import BuildFlag
from engine.errors import EngineError, ManifestError
from engine.gpu import fingerprint
from engine.manifest import Manifest
from engine.remedy import rebuild
from engine.runtime.arrays import Array, is_host
from engine.runtime.gpu_buffers import GpuBuffers, enough_memory, require_gpus
from engine.runtime.kernel_cache import KERNEL_CACHE_SUFFIX, KernelCache
from engine.runtime.plan_memory import NOWHERE, place
from engine.target import Device, Target, targets_for
from engine.tensorrt_library import load_library

DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}
"""Of bindings, by TensorRT's name."""
REMEDY = "rebuild it with sgl build for as many ranks as run it, with the TensorRT that is installed here"


def require_runtime(directory: Path, manifest: Manifest, local_rank: int = 0, local_ranks: int = 1) -> None:
    """Raises EngineError unless this machine has the GPU and the library version that these plans want.

    Of several ranks on this machine, each takes the GPU of its number there.
    """
    target, remedy, on_cpu = manifest.target, rebuild(directory, manifest), targets_for(Device.CPU)[0]
    if not torch.cuda.is_available():
        raise ManifestError(
            f"{directory} was built for target {target}, which needs an NVIDIA GPU, and torch {torch.__version__} sees "
            f"none; run it on a machine with one, or rebuild with {BuildFlag.TARGET} {on_cpu} for a CPU"
        )
    if (gpus := torch.cuda.device_count()) < local_ranks:
        raise EngineError(
            f"{local_ranks} ranks of {directory} run on this machine, each on a GPU of its own, and torch sees {gpus}; "
            f"start some of them on another machine with mpiexec, or rebuild with a smaller {BuildFlag.TP}"
        )
    library, built = load_library(target), manifest.versions.get(target)
    if built != library.__version__:
        raise ManifestError(
            f"{directory} was built with {target} {built}, but {library.__version__} is installed, and plans run in no "
            f"version but the one that built them; install {built}, or {remedy}"
        )
    _require_same_gpu(directory, manifest, local_rank)


def require_gpu(directory: Path, manifest: Manifest, index: int) -> None:
    """Raises EngineError unless it is there, and one of those that the plans were tuned on."""
    require_gpus(directory, index + 1)
    _require_same_gpu(directory, manifest, index)


def _require_same_gpu(directory: Path, manifest: Manifest, index: int) -> None:
    """Raises EngineError unless it is one of those that the plans were tuned on."""
    if manifest.gpu is not None and manifest.gpu != (gpu := fingerprint(index)):
        raise ManifestError(
            f"{directory} was built for {manifest.gpu}, but the GPU here is {gpu}; {rebuild(directory, manifest)}"
        )


def use_gpu(index: int) -> None:
    """From here on, plans and buffers of this thread are on that GPU."""
    torch.cuda.set_device(index)


class TensorRtExecutor(GpuBuffers):
    """A deserialised plan with a context for each of its profiles, of which shapes decide: the last that admits them.

    NumPy arrays that are bound as inputs are copied to the device at every run. Results are ready for whatever is
    done next with torch on the same device; nothing here waits for them.
    """

    def __init__(
        self, library: Any, log: Any, runtime: Any, engine: Any, name: str, device: str, records: bool
    ) -> None:
        """See `open`. log, runtime, engine: of the library; each has to outlive what was made with it."""
        self._name, self._device = name, torch.device(device)
        self._contexts: list[Any] = []  # declared, and so given back, before the memory and the kernels that they use
        self._library, self._log, self._runtime, self._engine = library, log, runtime, engine
        self._is_rtx = hasattr(library, "CudaGraphStrategy")
        self._records = records and self._device.type == "cuda"
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        # What decides shapes would lie on the host; our graphs have no such input.
        assert all(engine.get_tensor_location(name) == library.TensorLocation.DEVICE for name in names)
        self._dtypes = {name: DTYPES[engine.get_tensor_dtype(name).name] for name in names}
        self._inputs = {name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT}
        self._aliases = {name: engine.get_aliased_input_tensor(name) for name in set(names) - self._inputs}
        self._ranges = [
            {name: engine.get_tensor_profile_shape(name, index) for name in self._inputs}
            for index in range(engine.num_optimization_profiles)
        ]
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        # TensorRT-RTX captures them itself, shape by shape.
        self._captures = self._records and not self._is_rtx
        self._kernels: KernelCache | None = None
        self._scratch: torch.Tensor | None = None  # contexts know its address only
        self._bound: dict[str, torch.Tensor] = {}
        """What the caller bound, or what a host array is copied to."""
        self._uploads: dict[str, np.ndarray] = {}
        """Host arrays that are copied before a run."""
        self._placed = NOWHERE
        self._profile: int | None = None
        """That admits what is bound; None until a run has looked."""
        self._graph: Any = None

    @classmethod
    def open(
        cls,
        library: Any,
        plan: bytes,
        name: str,
        device: str = "cuda",
        records: bool = True,
        kernels: Path | None = None,
    ) -> "TensorRtExecutor":
        """Raises EngineError when the library refuses the plan, or the GPU has too little memory.

        records: whether runs of the last of several profiles repeat so often that a CUDA graph of them pays. kernels:
        file for what the library compiles for this GPU; None compiles it at every start.
        """
        with _current(torch.device(device)):  # where the library puts weights and contexts
            runtime = library.Runtime(log := library.Logger(library.Logger.ERROR))
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise ManifestError(
                    f"{name} is refused by {library.__name__} {library.__version__} on this GPU"
                    f"{_reasons(library, runtime, plan)}; rebuild it here with sgl build, with {BuildFlag.TARGET} "
                    f"{Target.TENSORRT} for a GPU that {Target.TENSORRT_RTX} does not support"
                )
            executor = cls(library, log, runtime, engine, name, device, records)
            executor._make_contexts(kernels)
        return executor

    @classmethod
    def load(cls, target: Target, path: Path, device: str = "cuda", records: bool = True) -> "TensorRtExecutor":
        """Raises EngineError."""
        library = load_library(target)
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise ManifestError(f"{path} cannot be read ({error.strerror}); rebuild it with sgl build") from None
        return cls.open(library, plan, str(path), device, records, path.with_suffix(KERNEL_CACHE_SUFFIX))

    def release(self) -> None:
        self._bound.clear()
        self._uploads.clear()
        self._placed, self._profile, self._graph = NOWHERE, None, None

    def torch_dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def bind_input(self, name: str, array: Array) -> None:
        if not is_host(array):
            self._uploads.pop(name, None)
            self._bind(name, array)
            return
        if name not in self._uploads or self._bound[name].shape != array.shape:
            self._bind(name, torch.empty(array.shape, dtype=self._dtypes[name], device=self._device))
        self._uploads[name] = array

    def bind_output(self, name: str, array: Array) -> None:
        self._bind(name, array)

    def run(self) -> None:
        with self._ordered() as stream:
            for name, array in self._uploads.items():
                # The driver has taken pageable memory when the call returns, so the host may write on.
                self._bound[name].copy_(torch.from_numpy(array), non_blocking=True)
            if self._profile is None:
                self._profile = self._settle()
                self._enqueue(stream)
                return
            if self._graph is None and self._captures and self._profile == len(self._contexts) - 1 > 0:
                # The run before this one has made whatever a context makes for new shapes.
                self._graph = self._capture(stream)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._enqueue(stream)

    def set_communicator(self, communicator: Any) -> None:
        """An NCCL communicator (a capsule), for plans that reduce over ranks; every rank has to call it.

        Raises EngineError when TensorRT refuses it.
        """
        for context in self._contexts:
            try:
                taken = context.set_communicator(communicator)
            except Exception as error:
                raise EngineError(f"{self._name} does not take the NCCL communicator ({error}); {REMEDY}") from error
            if not taken:
                raise EngineError(f"{self._name} does not take the NCCL communicator; {REMEDY}")

    def _make_contexts(self, kernels: Path | None) -> None:
        """One for each profile; they run one after another in one stream, with one memory for intermediate results."""
        config = self._engine.create_runtime_config()
        if kernels is not None and self._is_rtx:
            self._kernels = KernelCache.read(config.create_runtime_cache(), kernels)
        with enough_memory(self._name):
            scratch = torch.empty(self._engine.device_memory_size_v2, dtype=torch.uint8, device=self._device)
        self._scratch = scratch
        self._contexts += [self._make_context(profile, scratch) for profile in range(len(self._ranges))]
        if self._kernels is not None:
            self._kernels.save()

    def _make_context(self, profile: int, scratch: torch.Tensor) -> Any:
        library, config = self._library, self._engine.create_runtime_config()
        # Its own allocations would keep TensorRT-RTX from recording CUDA graphs.
        config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._kernels is not None:
            self._kernels.attach(config)
        if self._is_rtx and profile and self._records:
            config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._is_rtx and self._engine.num_optimization_profiles > 1 and not profile:
            # Prompts are of ever new lengths: kernels for each of them would hardly be used twice.
            strategies = library.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
        context = self._engine.create_execution_context(config)
        with self._ordered() as stream, enough_memory(self._name):
            if context is None or not context.set_optimization_profile_async(profile, stream):
                raise torch.OutOfMemoryError  # the likely reason; the library has said its own on stderr
        context.set_device_memory(scratch.data_ptr(), scratch.nbytes)
        return context

    def _bind(self, name: str, tensor: torch.Tensor) -> None:
        expected = self._dtypes[name], self._device.type
        assert (tensor.dtype, tensor.device.type) == expected, f"{name} is {tensor.dtype} on {tensor.device}"
        assert tensor.is_contiguous(), f"{name} is not contiguous"
        before = self._bound.get(name)
        self._bound[name] = tensor  # holds the memory, whose address is all that a context knows
        if before is None or (before.data_ptr(), before.shape) != (tensor.data_ptr(), tensor.shape):
            self._profile = self._graph = None

    def _settle(self) -> int:
        """Tell the context of the profile that admits it what is bound."""
        shapes = {name: tuple(self._bound[name].shape) for name in self._inputs}
        admitting = [index for index, ranges in enumerate(self._ranges) if _admits(ranges, shapes)]
        if not admitting:
            raise RuntimeError(f"{self._name} was not built for these shapes: {shapes}")
        context = self._contexts[admitting[-1]]
        refused = [name for name, shape in shapes.items() if not context.set_input_shape(name, shape)]
        self._placed = place(self._bound, self._aliases)
        for name, tensor in self._placed.tensors.items():
            if not context.set_tensor_address(name, tensor.data_ptr()):
                refused.append(name)
        if refused or context.infer_shapes():
            raise RuntimeError(f"{self._name} does not take what is bound to {refused or context.infer_shapes()}")
        return admitting[-1]

    def _enqueue(self, stream: int) -> None:
        assert self._profile is not None
        for target, source in self._placed.before:
            target.copy_(source)
        if not self._contexts[self._profile].execute_async_v3(stream):
            raise RuntimeError(f"{self._name} failed on the GPU")
        for target, source in self._placed.after:
            target.copy_(source)

    def _capture(self, stream: int) -> Any:
        """A CUDA graph of a run; None, from then on, of a plan that does what no graph can hold."""
        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._enqueue(stream)
            finally:
                graph.capture_end()
        except RuntimeError:
            self._captures = False
            return None
        return graph

    @contextmanager
    def _ordered(self) -> Iterator[int]:
        """A stream (not the default one, in which TensorRT would wait) that takes its place in torch's order."""
        if self._stream is None:
            yield 0
            return
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield self._stream.cuda_stream
        outside.wait_stream(self._stream)


def _current(device: torch.device) -> AbstractContextManager[None]:
    """In which a GPU that is named by its number is the one that this thread uses."""
    is_named = device.type == "cuda" and device.index is not None
    return torch.cuda.device(device) if is_named else nullcontext()


def _admits(ranges: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether every dimension lies between those of a profile's least and largest shapes."""
    return all(
        low <= size <= high
        for name, (least, _, most) in ranges.items()
        for low, size, high in zip(least, shapes[name], most, strict=True)
    )


def _reasons(library: Any, runtime: Any, plan: bytes) -> str:
    """What TensorRT-RTX finds wrong with a plan, as in ` (UNSUPPORTED_CC)`."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    _, found = runtime.get_engine_validity(plan)
    names = [name for name, reason in library.EngineInvalidityDiagnostics.__members__.items() if found & reason.value]
    return f" ({', '.join(names)})" if names else ""
