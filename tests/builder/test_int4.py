"""int4 matrices on ONNX Runtime: their kernel against dequantised float64, rows that mind nobody, whole engines."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from engine.build.builder import build_pair
from engine.build.quantize import INT4_BLOCK, MAX_ERROR, MAX_ERROR_INT4, MatrixKernel, pack
from engine.config import BuildConfig, SamplingConfig
from engine.planning.pair_plan import plan_pair
from engine.planning.plan_config import PlanConfig
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.target import Precision, Target
from tests.builder.test_quantize import bell, build_matrix, initializers, open_session, read_report, run
from tests.pictures import noise


def dequantize(data: np.ndarray, scale: np.ndarray, inputs: int) -> np.ndarray:
    """-> float64 [K,N]"""
    numbers = np.stack([data & 15, data >> 4], axis=-1).reshape(*scale.shape, INT4_BLOCK).astype(np.float64) - 8
    return (numbers * scale[..., None]).reshape(len(data), -1)[:, :inputs].T


def int4_matrix(directory: Path, shape: tuple[int, int]) -> Path:
    return build_matrix(directory, bell(*shape), bell(1, 30, shape[0]), most_error=MAX_ERROR_INT4)


@pytest.mark.parametrize("shape", [(1, 1), (5, 123), (123, 5), (128, 33), (130, 2050)])
def test_a_packed_matrix_is_close_and_closer_than_with_the_largest_at_the_end(shape: tuple[int, int]) -> None:
    matrix = bell(*shape)
    matrix[:, 0] = 0
    packed = pack(MatrixKernel.INT4, matrix)
    assert packed.data.nbytes + packed.scale.nbytes == shape[1] * -(-shape[0] // INT4_BLOCK) * (INT4_BLOCK // 2 + 4)
    restored = dequantize(packed.data, packed.scale, shape[0])
    assert (restored[:, 0] == 0).all()
    blocks = np.pad(matrix, ((0, -shape[0] % INT4_BLOCK), (0, 0))).reshape(-1, INT4_BLOCK, shape[1])
    step = np.maximum(np.abs(blocks).max(axis=1, keepdims=True) / 7, 1e-30)
    plain = (np.clip(np.rint(blocks / step), -8, 7) * step).reshape(-1, shape[1])[: shape[0]]
    assert np.square(restored - matrix).sum() <= np.square(plain - matrix).sum() + 1e-9


@pytest.mark.parametrize("batch", [(1, 1), (1, 7), (3, 5)])
@pytest.mark.parametrize("shape", [(40, 17), (123, 5), (384, 131)])
def test_the_kernel_equals_dequantised_float64(tmp_path: Path, batch: tuple[int, int], shape: tuple[int, int]) -> None:
    path = int4_matrix(tmp_path, shape)
    weights = initializers(path)
    assert weights.keys() == {"proj.weight.int4", "proj.weight.scale", "proj.bias"}
    x = bell(*batch, shape[0], seed=1)
    blocks = np.pad(x, ((0, 0), (0, 0), (0, -shape[0] % INT4_BLOCK))).reshape(*batch, -1, INT4_BLOCK)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    rounded = (np.rint(blocks / scale).astype(np.float64) * scale).reshape(*batch, -1)[..., : shape[0]]
    matrix = dequantize(weights["proj.weight.int4"], weights["proj.weight.scale"], shape[0])
    assert_allclose(run(path, x=x), rounded @ matrix + np.arange(shape[1]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(123, 5), (640, 130), (1000, 2050)])
def test_a_row_does_not_depend_on_the_others(tmp_path: Path, threads: int, shape: tuple[int, int]) -> None:
    """Bit by bit: odd and even numbers of rows, at any place, beside rows that are huge, tiny, zero and not finite."""
    session = open_session(int4_matrix(tmp_path, shape), threads)
    x = bell(96, shape[0], seed=1) * np.geomspace(1e-30, 1e30, 96, dtype=np.float32)[:, None]
    x[[5, 40]] = 0
    x[-1, 3] = np.inf
    alone = np.concatenate([session.run(None, {"x": row[None, None]})[0][0] for row in x])
    assert np.isfinite(alone[:-1]).all()
    for batch, length in ((1, 2), (3, 1), (4, 2), (1, 7), (1, 16), (1, 17), (2, 33), (1, 95), (1, 96)):
        for start in (0, 29, 96 - batch * length):
            rows = slice(start, start + batch * length)
            if rows.stop <= len(x):
                (y,) = session.run(None, {"x": x[rows].reshape(batch, length, -1)})
                assert_array_equal(y.reshape(-1, shape[1]), alone[rows])


def test_a_matrix_that_does_not_bear_it_is_int8(tmp_path: Path) -> None:
    """What the activations are largest in is small in each block of weights, beside what is large and leads nowhere."""
    matrix, activations = bell(384, 64), bell(1, 50, 384, seed=1)
    matrix[::16] *= 4
    activations[..., ::16] /= 1000
    path = build_matrix(tmp_path, matrix, activations, most_error=MAX_ERROR_INT4)
    report = read_report(path)
    entry = report["matrices"]["proj.weight"]
    assert entry["kernel"] in MAX_ERROR
    assert entry["fidelity"].keys() == {"int4", "per_row", "per_block"}
    assert entry["fidelity"]["int4"]["relative_error"] > MAX_ERROR_INT4[MatrixKernel.INT4]
    assert report["max_error"].keys() == {"int4", "per_row", "per_block"}


def test_a_pair_in_int4(pair: Path, tmp_path: Path) -> None:
    """Heads and vision encoders are int8, files have the planned sizes, and answers are the same in company."""
    out = tmp_path / "int4"
    build_pair(BuildConfig(pair / "small", pair / "large", out, precision=Precision.INT4, max_tokens=1024))
    plan = plan_pair(PlanConfig(pair / "small", pair / "large", Target.ONNXRUNTIME, Precision.INT4))
    for name, model in (("small", plan.small), ("large", plan.large)):
        language = read_report(out / name / "rank0/language.onnx")["matrices"]
        assert language["lm_head.weight"]["kernel"] in MAX_ERROR
        assert [entry["kernel"] for entry in language.values()].count("int4") >= 0.8 * len(language)
        assert not [entry for entry in read_report(out / name / "vision.onnx")["matrices"].values() if "int4" in entry]
        for file, planned in (("rank0/language", model.language_bytes), ("vision", model.vision_bytes)):
            assert (out / name / f"{file}.weights").stat().st_size == pytest.approx(planned, rel=0.1)
        nodes = onnx.load(out / name / "rank0/language.onnx", load_external_data=False).graph.node
        assert "MatMul" not in {node.op_type for node in nodes}
    pictures = [noise(150, 320), noise(64, 64), noise(300, 100)]
    with SglPipeline.load(out, threads=1) as pipeline:
        sampling = SamplingConfig(max_new_tokens=6)
        ask = [(picture, "What is this?") for picture in pictures]
        alone = [pipeline.answer([picture], text, sampling=sampling) for picture, text in ask]
        together = pipeline.answer_batch([Question((picture,), text, sampling=sampling) for picture, text in ask])
    for one, other in zip(alone, together, strict=True):
        assert (one.token_ids, one.probabilities) == (other.token_ids, other.probabilities)
