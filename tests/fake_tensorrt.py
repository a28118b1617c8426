"""The methods of a TensorRT package that our runtime calls, without a GPU: a plan is the lowered graph, which ONNX's
reference runs on host memory that it knows by address only. What a driver would forgive by luck fails here: an output
that is not an input's own is spoilt before the inputs are read, and a sum over ranks wants its communicator.
"""

import ctypes
import os
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference.op_run import OpRun

from engine.build.targets.tensorrt_compiler import Job
from tests import fake_nccl
from tests.reference_executor import ReferenceExecutor

__version__ = "1.7.fake"
DataType = Enum("DataType", "FLOAT HALF BF16 INT32 INT64 BOOL")
TensorIOMode = Enum("TensorIOMode", "INPUT OUTPUT")
TensorLocation = Enum("TensorLocation", "DEVICE HOST")
ExecutionContextAllocationStrategy = Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
DynamicShapesKernelSpecializationStrategy = Enum("DynamicShapesKernelSpecializationStrategy", "LAZY NONE")
EngineInvalidityDiagnostics = Enum("EngineInvalidityDiagnostics", {"UNSUPPORTED_CC": 2, "MALFORMED_ENGINE": 32})
CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
NAMES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "BFLOAT16": "BF16", "INT32": "INT32", "INT64": "INT64", "BOOL": "BOOL"}
"""Of types, by ONNX's name."""

ALIGNMENT = 64
"""Bytes: what torch gives memory of the host. On a GPU it is 256."""
FAILING_RUN = [int(number) for number in os.environ.get("FAKE_FAILING_RUN", "").split()]
"""Of several ranks, the one that fails, after so many runs."""


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        pass


def compile_plan(job: Job, job_file: Path) -> None:
    """In the place of the compiler's process."""
    graph = onnx.load(job.onnx).SerializeToString()
    job.plan.write_bytes(pickle.dumps((graph, [profile.shapes for profile in job.profiles])))
    job.report.write_text("{}")


class DistCollective(OpRun):
    """The sum over all ranks, by MPI."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, collective_operation: str, nb_rank: int, reduce_op: str, root: int
    ) -> tuple[np.ndarray]:
        from mpi4py import MPI

        assert (collective_operation, reduce_op, root, nb_rank) == ("all_reduce", "sum", -1, MPI.COMM_WORLD.size)
        total = np.empty_like(x)
        MPI.COMM_WORLD.Allreduce(np.ascontiguousarray(x), total)
        return (total,)


class Runtime:
    def __init__(self, logger: Logger) -> None:
        pass

    def deserialize_cuda_engine(self, plan: bytes) -> "Engine | None":
        try:
            return Engine(*pickle.loads(plan))
        except pickle.UnpicklingError:
            return None

    def get_engine_validity(self, plan: bytes) -> tuple[None, int]:
        return None, EngineInvalidityDiagnostics.MALFORMED_ENGINE.value


class RuntimeCache:
    """Of compiled kernels; what an engine's contexts compile is `COMPILED`."""

    COMPILED = b"kernels for this GPU"

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        if content != self.COMPILED:
            return False
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    def __init__(self) -> None:
        self.strategy: ExecutionContextAllocationStrategy | None = None
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Engine:
    def __init__(self, graph: bytes, profiles: list[dict[str, Any]]) -> None:
        self.model = ir.from_proto(onnx.load_from_string(graph))
        self.profiles = profiles
        self.values = {value.name: value for value in (*self.model.graph.inputs, *self.model.graph.outputs)}
        self._inputs = {value.name for value in self.model.graph.inputs}
        self.executor = ReferenceExecutor(self.model, [DistCollective])
        self.reduces = any(node.op_type == DistCollective.__name__ for node in self.model.graph)
        self.num_io_tensors, self.num_optimization_profiles = len(self.values), len(profiles)
        self.runs = [0] * len(profiles)
        self.settled = [0] * len(profiles)
        """How often each profile was told what is bound."""
        self.device_memory_size_v2 = 1000
        self.compilations = 0

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[NAMES[self.values[name].dtype.name]]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("present_", "past_") if name.startswith("present_") else None

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        static = self.values[name].shape
        return list(self.profiles[profile].get(name) or [tuple(static)] * 3)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig) -> "Context":
        assert config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if config.cache is None or not config.cache.content:
            self.compilations += 1
        if config.cache is not None:
            config.cache.content = RuntimeCache.COMPILED
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._profile = engine, 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._communicator: fake_nccl.Handle | None = None
        self._has_memory = False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory and size >= self._engine.device_memory_size_v2
        self._has_memory = True

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, self._profile)
        self._shapes[name] = shape
        return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine.values and address % ALIGNMENT == 0

    def set_communicator(self, communicator: Any) -> bool:
        self._communicator = fake_nccl.Handle.from_address(_pointer(communicator))
        fake_nccl.record(f"set {self._communicator.rank}")
        return self._engine.reduces and str(self._communicator.rank) != os.environ.get("FAKE_REFUSING_RANK")

    def infer_shapes(self) -> list[str]:
        self._engine.settled[self._profile] += 1
        return [value.name for value in self._engine.model.graph.inputs if value.name not in self._shapes]

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        assert self._has_memory
        if engine.reduces:
            assert self._communicator is not None
            fake_nccl.record(f"run {self._communicator.rank}")
            if [self._communicator.rank, sum(engine.runs)] == FAILING_RUN:
                return False
        sizes: dict[str, int] = {}
        for value in engine.model.graph.inputs:
            for dim, size in zip(value.shape, self._shapes[value.name], strict=True):
                assert sizes.setdefault(str(dim), size) == size, f"{dim} has two sizes"
        for name, value in engine.values.items():
            shape = tuple(sizes.get(str(dim), dim) for dim in value.shape)
            memory = _memory(self._addresses[name], shape, value.dtype.numpy())
            if engine.get_tensor_mode(name) is TensorIOMode.INPUT:
                engine.executor.bind_input(name, memory)
                continue
            engine.executor.bind_output(name, memory)
            if alias := engine.get_aliased_input_tensor(name):
                assert self._addresses[name] == self._addresses[alias], f"{name} is updated in place"
            else:
                memory.view(np.uint8)[...] = 0xFF
        engine.executor.run()
        engine.runs[self._profile] += 1
        return True


def _pointer(capsule: Any) -> int:
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address: int = read(capsule, b"ncclComm_t")
    return address


def _memory(address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)
