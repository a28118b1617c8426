"""ONNX Runtime's engines in half precision: against float32 on the CPU, and through the buffers of a GPU's executor."""

import ctypes
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.errors import EngineError
from engine.runtime import loading, model
from engine.runtime.executor_onnxruntime_cuda import CudaExecutor
from engine.runtime.executor_onnxruntime_session import CPU, open_session
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.target import Precision, Target
from tests.fake_device import DEVICE, answer_on
from tests.runtime.test_executor_tensorrt import bind, check_host_arrays, make_plan
from tests.tolerance import TOLERANCE
from tools.gpu_check.engine_checks import prefill

QUESTIONS = ("What color is the small object?", "Hello?", "How many are there?")
SETTINGS: dict[str, Any] = {
    "guidance": GuidanceConfig(retention_ratio=0.3),
    "exit": ExitConfig(exit_threshold=2.0),
    "sampling": SamplingConfig(max_new_tokens=6),
}


@pytest.fixture(scope="module")
def half(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "half"
    paths = pair / "small", pair / "large", out
    build_pair(BuildConfig(*paths, precision=Precision.FP16, max_tokens=1024, max_batch=3))
    return out


def ask(pipeline: SglPipeline, picture: Image.Image) -> list[tuple[tuple[int, ...], list[int]]]:
    """Tokens, and the visual tokens that were kept."""
    answers = pipeline.answer_batch([Question((picture,), text, **SETTINGS) for text in QUESTIONS])
    return [(answer.token_ids, [] if answer.kept is None else answer.kept.tolist()) for answer in answers]


def test_logits_and_importance_are_those_of_float32(half: Path, pipeline: SglPipeline) -> None:
    """On the CPU, which turns most of it to float32 and back."""
    halves = SglPipeline.load(half, threads=1)
    for actual, expected in zip(prefill(halves, "small"), prefill(pipeline, "small"), strict=True):
        assert (actual.dtype, np.abs(expected).max() > 0.1) == (np.float32, True)
        assert_allclose(actual, expected, **TOLERANCE["fp16"])


def test_weights_and_caches_take_half(half: Path, engine_directory: Path) -> None:
    name = Path("large/rank0/language.weights")
    sizes = [(directory / name).stat().st_size for directory in (half, engine_directory)]
    assert sizes[0] < 0.55 * sizes[1]
    language = SglPipeline.load(half, threads=1).large.language.executor  # type: ignore[attr-defined]
    assert language.zeros("past_key_0", (1, 2)).dtype == np.float16
    assert language.zeros("logits", (1, 2)).dtype == np.float32


def put_gpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """All engines on the GPU's executor, with the buffers of a device of torch that is none."""

    def load(target: Target, path: Path, *_: object, records: bool = True) -> CudaExecutor:
        session = open_session(path.with_suffix(".onnx"), 1, {CPU: {}})
        monkeypatch.setattr(session, "binding", OnHost(session.binding))
        return CudaExecutor(session, device)

    for module in (model, loading):
        monkeypatch.setattr(module, "load", load)


class OnHost:
    """A binding for which everything is where it is, in the memory of the host."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def bind_input(self, name: str, device: str, *declared: Any) -> None:
        self._binding.bind_input(name, "cpu", *declared)

    def bind_output(self, name: str, device: str, *declared: Any) -> None:
        self._binding.bind_output(name, "cpu", *declared)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


def test_buffers_of_the_gpu_give_the_same_answers(
    half: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch tensors on the CPU in the place of a GPU's."""
    expected = ask(SglPipeline.load(half, threads=1), picture)
    put_gpu(monkeypatch, "cpu")
    assert ask(SglPipeline.load(half, threads=1), picture) == expected


def test_a_batch_stays_on_the_gpu(half: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of several questions, one of them merged on the host, and a question without any."""
    merged = GuidanceConfig(source=GuidanceSource.TOME, retention_ratio=0.5)
    questions = [
        Question((picture,), "What is there?", exit=SETTINGS["exit"]),
        Question((picture,), "What else?", merged, SETTINGS["exit"]),
        Question((), "Hello?", exit=SETTINGS["exit"]),
    ]
    expected = [answer.token_ids for answer in SglPipeline.load(half, threads=1).answer_batch(questions)]

    put_gpu(monkeypatch, DEVICE.type)
    with answer_on(monkeypatch):
        answers = SglPipeline.load(half, threads=1).answer_batch(questions)
    assert [answer.token_ids for answer in answers] == expected


class CopyingBinding:
    """As ONNX Runtime's is for a GPU: an array on the host is copied when it is bound; one has to wait for it."""

    def __init__(self, binding: Any, on_host: str) -> None:
        self._binding, self._on_host = binding, on_host
        self._taken = self._copy = np.empty(0)

    def synchronize_inputs(self) -> None:
        self._copy[:] = self._taken
        self._binding.synchronize_inputs()

    def bind_input(self, name: str, *declared: Any) -> None:
        if name == self._on_host:
            device, number, dtype, shape, address = declared
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self._taken = np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8).copy()
            self._copy = np.zeros_like(self._taken)
            declared = device, number, dtype, shape, self._copy.ctypes.data
        self._binding.bind_input(name, *declared)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._binding, name)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_host_arrays_are_read_at_every_run_in_the_type_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    (tmp_path / "sums.onnx").write_bytes(pickle.loads(make_plan())[0])
    session = open_session(tmp_path / "sums.onnx", 1, {CPU: {}})
    monkeypatch.setattr(session, "binding", CopyingBinding(session.binding, "x"))
    cuda = CudaExecutor(session, "cpu")
    x, total, cache = bind(cuda, 2)
    x = x.astype(dtype)
    cuda.bind_input("x", x)
    check_host_arrays(cuda, x, total, cache)


def test_ranks_are_refused(pair: Path, tmp_path: Path) -> None:
    build = BuildConfig(pair / "small", pair / "large", tmp_path / "out", precision=Precision.FP16, world_size=2)
    with pytest.raises(EngineError, match=r"precision fp16 of target onnxruntime is for one GPU, .* leave out --tp"):
        build_pair(build)
