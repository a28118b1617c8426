"""The plugins for TensorRT over a stub of its library: shapes, launches, PTX."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

pytest.importorskip("triton", reason="the compiler of the kernels is not installed")

from tests.plugins.tensorrt_stub import Launch, Tensor, missing, stub_process

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

from engine.plugins.compile import usage
from tests.plugins.tensorrt_stub import launch

CAPABILITY = 90
HEADS = {"num_heads": 14, "num_kv_heads": 2, "head_dim": 64}
BATCH, CACHE = 3, 1100
QUERY, ONE_ROW = Tensor((BATCH, 40, 14 * 64), "BF16"), Tensor((BATCH, 1, 14 * 64), "BF16")
CACHES = Tensor((BATCH, 2, CACHE, 64), "BF16")
LENGTH = Tensor((BATCH,), "INT32")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    with stub_process(tmp_path_factory.mktemp("tensorrt")) as pool:
        yield pool


def check_kernel(result: Launch, inputs: int) -> None:
    """TensorRT passes the inputs, the scalars and the outputs, and the kernel takes exactly these."""
    assert f".entry {result.name}(" in result.ptx
    parameters = result.ptx.partition(f".entry {result.name}(")[2].partition(")")[0].split(",")
    kinds = [parameter.split()[1] for parameter in parameters]
    assert kinds == [".u64"] * inputs + [".u32"] * len(result.scalars) + [".u64"] * len(result.outputs)
    assert f".reqntid {result.block[0]}\n" in result.ptx
    assert result.block[1:] == (1, 1)
    assert usage(result.ptx, CAPABILITY).registers > 0, "the assembler takes it"


def test_attend_prefill(stub: ProcessPoolExecutor) -> None:
    inputs = [QUERY, CACHES, CACHES, LENGTH, LENGTH]
    result = stub.submit(launch, "attend", CAPABILITY, inputs, HEADS, tactic=1).result()
    check_kernel(result, len(inputs))
    floats = [Tensor((3, 14, 40), "FLOAT"), Tensor((3, 2, 1, 7, 64), "FLOAT"), Tensor((3, 2, 1, 7), "FLOAT")]
    assert result.outputs == [QUERY, *floats]
    assert result.grid == (3, 2, 3), "40 tokens of 7 heads in tiles of 128"
    assert result.scalars == [40, CACHE, 1]
    assert result.types == [["BF16"] * 3 + ["INT32"] * 2 + ["BF16"] + ["FLOAT"] * 3]
    assert result.tactics == [1, 2, 3]


def test_attend_decode(stub: ProcessPoolExecutor) -> None:
    inputs = [ONE_ROW, CACHES, CACHES, LENGTH, LENGTH]
    result = stub.submit(launch, "attend", CAPABILITY, inputs, HEADS, tactic=2).result()
    check_kernel(result, len(inputs))
    floats = [Tensor((3, 14, 1), "FLOAT"), Tensor((3, 2, 5, 7, 64), "FLOAT"), Tensor((3, 2, 5, 7), "FLOAT")]
    assert result.outputs == [ONE_ROW, *floats]
    assert result.grid == (5, 2, 3), "1,100 keys in splits of 256"
    assert result.scalars == [1, CACHE, 5]


def test_combine_splits_writes_in_place(stub: ProcessPoolExecutor) -> None:
    inputs = [ONE_ROW, Tensor((3, 14, 1), "FLOAT"), Tensor((3, 2, 5, 7, 64), "FLOAT"), Tensor((3, 2, 5, 7), "FLOAT")]
    result = stub.submit(launch, "combine_splits", CAPABILITY, inputs, HEADS).result()
    check_kernel(result, len(inputs))
    assert result.outputs == inputs[:2]
    assert result.aliased == [0, 1]
    assert result.grid == (14, 3, 1)
    assert result.scalars == [5]


def test_receive(stub: ProcessPoolExecutor) -> None:
    scored, visual = 9, 300
    rows = [Tensor((BATCH, scored), "INT64"), Tensor((BATCH, scored), "FLOAT"), Tensor((BATCH, visual), "INT64")]
    inputs = [QUERY, CACHES, LENGTH, Tensor((3, 14, 40), "FLOAT"), *rows]
    result = stub.submit(launch, "receive", CAPABILITY, inputs, HEADS).result()
    check_kernel(result, len(inputs))
    assert result.outputs == [Tensor((3, 2, visual), "FLOAT")]
    assert result.grid == (5, 2, 3), "300 visual tokens in tiles of 64"
    assert result.scalars == [40, CACHE, scored, visual]


@pytest.mark.parametrize("angles", ["FLOAT", "BF16"])
def test_prune_visual_tokens(stub: ProcessPoolExecutor, angles: str) -> None:
    rows = [Tensor((BATCH, 40, 896), "BF16"), Tensor((BATCH, 40, 32), angles), Tensor((BATCH, 40, 32), angles)]
    inputs = [*rows, Tensor((BATCH, 11), "INT64")]
    result = stub.submit(launch, "prune_rows", CAPABILITY, inputs, {}).result()
    check_kernel(result, len(inputs))
    assert result.outputs == [Tensor((BATCH, 11, x.shape[2]), x.dtype) for x in rows]
    assert result.grid == (11, BATCH, 1)
    assert result.scalars == [40, 11]
