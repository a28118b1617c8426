"""The TensorRT executor by itself, on a stand-in of the library; what it does on a GPU is skipped without one."""

import pickle
from enum import Enum, EnumType
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.testing import assert_array_equal

from engine.bindings import Binding, Bindings
from engine.build.graph import declare, finish
from engine.dims import Dim
from engine.errors import EngineError, ManifestError
from engine.runtime import plan_memory
from engine.runtime.executor import Executor
from engine.runtime.executor_tensorrt import TensorRtExecutor
from tests import fake_tensorrt
from tests.plugins import tensorrt_stub


def make_plan() -> bytes:
    """total_out = total + x, present_0 = past_0 + x, in half precision; up to 4 rows, or one in the second profile."""
    rows = Dim("rows", 1, 1, 4)
    names = ("x", "total", "past_0"), ("total_out", "present_0")
    bound = Bindings(*(tuple(Binding(name, "float16", (rows, 2)) for name in group) for group in names))
    builder, inputs = declare("sums", bound)
    outputs = {
        "total_out": builder.op.Add(inputs["total"], inputs["x"]),
        "present_0": builder.op.Add(inputs["past_0"], inputs["x"]),
    }
    graph = ir.to_proto(finish(builder, bound, outputs)).SerializeToString()
    profiles = [dict.fromkeys(names[0], ((1, 2), (1, 2), (most, 2))) for most in (4, 1)]
    return pickle.dumps((graph, profiles))


@pytest.fixture(autouse=True)
def _host_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function is not test_on_a_gpu:
        monkeypatch.setattr(plan_memory, "ALIGNMENT", fake_tensorrt.ALIGNMENT)


@pytest.fixture
def executor() -> TensorRtExecutor:
    return TensorRtExecutor.open(fake_tensorrt, make_plan(), "sums.plan", device="cpu")


def bind(executor: Executor, rows: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """-> x on the host, the total and the cache on the device, both updated in place."""
    x = np.full((rows, 2), 1.5, np.float32)
    total, cache = (executor.zeros(name, (rows, 2)) for name in ("total", "past_0"))
    executor.bind_input("x", x)
    for source, target, buffer in (("total", "total_out", total), ("past_0", "present_0", cache)):
        executor.bind_input(source, buffer)
        executor.bind_output(target, buffer)
    return x, total, cache


def check_host_arrays(executor: Executor, x: np.ndarray, total: torch.Tensor, cache: torch.Tensor) -> None:
    """What is bound as `bind` does is read at every run, in the engine's type."""
    executor.run()
    x[1] = 2.0
    executor.run()
    assert total.dtype == torch.float16
    assert_array_equal(total, [[3, 3], [3.5, 3.5]])
    assert_array_equal(cache, total)


def test_host_arrays_are_read_at_every_run_in_the_type_of_the_plan(executor: TensorRtExecutor) -> None:
    check_host_arrays(executor, *bind(executor, 2))


def test_shapes_choose_the_profile(executor: TensorRtExecutor) -> None:
    for rows in (3, 1, 1, 4):
        bind(executor, rows)
        executor.run()
    assert executor._engine.runs == [2, 2]


def test_more_than_the_plan_takes_is_an_error(executor: TensorRtExecutor) -> None:
    bind(executor, 5)
    with pytest.raises(RuntimeError, match=r"sums.plan was not built for these shapes: .*\(5, 2\)"):
        executor.run()


def test_a_host_array_never_lands_in_a_buffer_of_the_caller(executor: TensorRtExecutor) -> None:
    bind(executor, 2)
    mine = executor.put("x", np.full((2, 2), 7, np.float32))
    executor.bind_input("x", mine)
    executor.run()
    executor.bind_input("x", np.zeros((2, 2), np.float32))
    executor.run()
    assert_array_equal(mine, np.full((2, 2), 7))


def test_a_plan_that_the_library_refuses() -> None:
    reason = r"^other.plan is refused by tests.fake_tensorrt 1.7.fake on this GPU \(MALFORMED_ENGINE\); "
    with pytest.raises(ManifestError, match=reason):
        TensorRtExecutor.open(fake_tensorrt, b"not a plan", "other.plan", device="cpu")


def test_parts_of_buffers_may_lie_anywhere(executor: TensorRtExecutor) -> None:
    check_parts_of_buffers(executor)


def check_parts_of_buffers(executor: TensorRtExecutor) -> None:
    """As the logits of the second request of a batch do, of a vocabulary of odd size."""
    buffers = {name: executor.zeros(name, (4, 2))[1:] for name in ("x", "total", "past_0", "total_out")}
    assert all(buffer.data_ptr() % plan_memory.ALIGNMENT for buffer in buffers.values())
    buffers["x"][:] = 1.5
    buffers["total"][:] = 1
    for name, buffer in buffers.items():
        (executor.bind_output if name == "total_out" else executor.bind_input)(name, buffer)
    executor.bind_output("present_0", buffers["past_0"])
    for runs in (1, 2):
        executor.run()
        assert_array_equal(buffers["past_0"].cpu(), np.full((3, 2), 1.5 * runs))
    assert_array_equal(buffers["total_out"].cpu(), np.full((3, 2), 2.5))
    assert_array_equal(buffers["total"].cpu(), np.ones((3, 2)))


def test_a_plan_that_no_graph_can_hold_runs_without(
    executor: TensorRtExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Graph:
        def capture_begin(self, capture_error_mode: str) -> None:
            tried.append(capture_error_mode)
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    executor._captures = True
    _, total, _ = bind(executor, 1)
    for _ in range(4):
        executor.run()
    assert_array_equal(total, [[6, 6]])
    assert tried == ["thread_local"]


def test_kernels_are_compiled_once_for_a_plan(tmp_path: Path) -> None:
    kernels = tmp_path / "sums.kernels"

    def compilations() -> int:
        engine = TensorRtExecutor.open(fake_tensorrt, make_plan(), "sums.plan", device="cpu", kernels=kernels)._engine
        return int(engine.compilations)

    assert (compilations(), compilations()) == (1, 0), "one of two contexts, and then none"
    assert list(tmp_path.iterdir()) == [kernels]
    kernels.write_bytes(b"of another GPU")
    assert (compilations(), compilations()) == (1, 0)


def test_what_was_compiled_later_is_kept_when_the_engine_ends(tmp_path: Path) -> None:
    kernels = tmp_path / "sums.kernels"
    executor = TensorRtExecutor.open(fake_tensorrt, make_plan(), "sums.plan", device="cpu", kernels=kernels)
    kernels.unlink()
    del executor
    assert kernels.read_bytes() == fake_tensorrt.RuntimeCache.COMPILED


def test_a_read_only_engine_directory_opens_without_its_kernels(tmp_path: Path) -> None:
    kernels = tmp_path / "missing" / "sums.kernels"
    TensorRtExecutor.open(fake_tensorrt, make_plan(), "sums.plan", device="cpu", kernels=kernels)


def test_a_full_gpu_is_one_sentence(executor: TensorRtExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    for allocate in ("zeros", "empty"):
        monkeypatch.setattr(torch, allocate, full)
    with pytest.raises(EngineError, match=r"^the GPU has too little memory free for past_0; .* --max-batch$"):
        executor.zeros("past_0", (4, 2))
    with pytest.raises(EngineError, match=r"^the GPU has too little memory free for sums.plan; "):
        TensorRtExecutor.open(fake_tensorrt, make_plan(), "sums.plan", device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    """A plan of TensorRT-RTX, run in a stream of its own, gives what its graph says."""
    library = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    graph, profiles = pickle.loads(make_plan())
    builder = library.Builder(library.Logger(library.Logger.ERROR))
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert library.OnnxParser(network, library.Logger(library.Logger.ERROR)).parse(graph)
    config = builder.create_builder_config()
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, typical, most) in shapes.items():
            profile.set_shape(name, least, typical, most)
        config.add_optimization_profile(profile)
    plan = bytes(builder.build_serialized_network(network, config))
    kernels = tmp_path / "sums.kernels"
    for records in (False, True):
        executor = TensorRtExecutor.open(library, plan, "sums.plan", records=records, kernels=kernels)
        assert kernels.stat().st_size
        for rows in (3, 1):
            x, total, cache = bind(executor, rows)
            for step in range(5):
                x[:] = step
                executor.run()
            assert_array_equal(total.cpu(), np.full((rows, 2), 10))
            assert_array_equal(cache.cpu(), np.full((rows, 2), 10))
        check_parts_of_buffers(executor)


def stand_ins() -> dict[str, set[str]]:
    """What `fake_tensorrt` stands in for: methods, properties and members by TensorRT's class."""
    classes = {
        "Runtime": fake_tensorrt.Runtime,
        "ICudaEngine": fake_tensorrt.Engine,
        "IExecutionContext": fake_tensorrt.Context,
        "IRuntimeConfig": fake_tensorrt.RuntimeConfig,
        "IRuntimeCache": fake_tensorrt.RuntimeCache,
    }
    found = {name: {part for part in vars(fake) if part.islower() and part[0] != "_"} for name, fake in classes.items()}
    found["ICudaEngine"] |= {"num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"}
    found["IRuntimeConfig"] |= {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"}
    enums = (value for value in vars(fake_tensorrt).values() if isinstance(value, EnumType) and value is not Enum)
    return found | {enum.__name__: set(enum.__members__) for enum in enums}


ONLY_RTX = {
    "IRuntimeCache": None,
    "CudaGraphStrategy": None,
    "DynamicShapesKernelSpecializationStrategy": None,
    "EngineInvalidityDiagnostics": None,
    "Runtime": "get_engine_validity",
    "IRuntimeConfig": "create_runtime_cache set_runtime_cache cuda_graph_strategy "
    "dynamic_shapes_kernel_specialization_strategy",
}
"""What full TensorRT has not: classes, or parts of them."""


def missing(library: object, expected: dict[str, set[str]]) -> dict[str, set[str]]:
    absent = {name: parts - set(dir(getattr(library, name, None))) for name, parts in expected.items()}
    return {name: parts for name, parts in absent.items() if parts}


def test_tensorrt_rtx_has_all_that_is_called() -> None:
    library = pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    assert missing(library, stand_ins()) == {}


def test_full_tensorrt_has_all_but_what_is_asked_of_rtx_alone(tmp_path: Path) -> None:
    if reason := tensorrt_stub.missing():
        pytest.skip(reason)
    expected = stand_ins()
    with tensorrt_stub.stub_process(tmp_path) as stub:
        found = stub.submit(missing_in_tensorrt, expected).result()
    assert found == {name: set(parts.split()) if parts else expected[name] for name, parts in ONLY_RTX.items()}


def missing_in_tensorrt(expected: dict[str, set[str]]) -> dict[str, set[str]]:
    import tensorrt

    return missing(tensorrt, expected)
