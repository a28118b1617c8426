"""Target `tensorrt` where neither its library nor a GPU is: TensorRT-RTX, whose builder has the same interface, stands
in for the library, and a name for the GPU. What is tested is everything around the builder.
"""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from engine import gpu
from engine.build.builder import build_pair
from engine.build.language import language_graph
from engine.build.targets import tensorrt, tensorrt_compiler
from engine.build.targets.tensorrt_compiler import Job, compile_plan
from engine.config import BuildConfig
from engine.dims import Limits
from engine.engine_directory import read_manifest
from engine.errors import EngineError
from engine.model_config import LanguageConfig, RopeConfig
from engine.plugins.function import uses_plugins
from engine.plugins.lowerings import LOWERINGS
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from engine.target import Precision, Target
from tools.make_random_pair import write_pair

GPU = gpu.Gpu("Some GPU", 9, 0)
STAND_IN = "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    directory = tmp_path_factory.mktemp("library")
    (directory / "tensorrt.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: GPU)
    monkeypatch.setattr(tensorrt, "triton_version", lambda: "some")
    # TensorRT-RTX takes no plugins.
    monkeypatch.setitem(LOWERINGS, Target.TENSORRT, TENSORRT_RTX)


def test_manifest_names_the_gpu_and_measurements_are_kept(stand_in: None, tmp_path: Path) -> None:
    write_pair(tmp_path, seed=3)
    config = BuildConfig(
        tmp_path / "small",
        tmp_path / "large",
        tmp_path / "out",
        target=Target.TENSORRT,
        precision=Precision.FP16,
        max_tokens=256,
        prune_layers=(),
    )
    build_pair(config)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.target, manifest.gpu) == (Target.TENSORRT, "Some GPU (9.0)")
    assert manifest.versions["tensorrt"]
    files = manifest.components["large/vision"].files
    assert set(files) == {f"large/vision.{suffix}" for suffix in ("plan", "layers.json", "timing")}
    (tmp_path / "out" / "small" / "vision.plan").unlink()
    assert build_pair(config).built == ("small/vision",), "the earlier measurements are accepted"


@pytest.mark.parametrize("plugins", [False, True])
def test_plugins_are_registered_before_the_graph_is_read(
    plugins: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library, order = MagicMock(), []
    library.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0, PREFER_AOT_PYTHON_PLUGINS=2)
    library.ILogger = type("ILogger", (), {})
    library.OnnxParser.return_value.parse_from_file.side_effect = lambda path: order.append("read") or True
    library.Builder.return_value.build_serialized_network_to_stream.side_effect = RuntimeError("far enough")
    monkeypatch.setattr(tensorrt_compiler, "load_library", lambda target: library)
    monkeypatch.setattr(tensorrt_compiler, "make_writer", lambda library, file: None)
    monkeypatch.setattr(tensorrt_compiler, "register_our_plugins", lambda: order.append("register"))
    job = Job(Target.TENSORRT, *(tmp_path / name for name in ("onnx", "weights", "plan", "report")), (), plugins)
    with pytest.raises(RuntimeError, match="far enough"):
        compile_plan(job)
    assert order == ["register", "read"] if plugins else ["read"]
    flags = library.Builder.return_value.create_network.call_args.args[0]
    assert flags == (0b101 if plugins else 0b001)
    feature = library.Builder.return_value.create_builder_config.return_value.set_preview_feature
    assert feature.call_count == plugins


def test_plugins_are_for_the_gpu_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of torch, which need not know it."""
    registered: list[int] = []
    plugins = SimpleNamespace(register_plugins=registered.append)
    monkeypatch.setitem(sys.modules, "engine.plugins.tensorrt_plugins", plugins)
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: fake_driver(b"NVIDIA L40S", (8, 9), status=0))
    tensorrt_compiler.register_our_plugins()
    assert registered == [89]


@pytest.mark.parametrize(("scores", "prune_layers"), [(True, ()), (False, (1,))])
def test_graphs_of_full_tensorrt_use_plugins(scores: bool, prune_layers: tuple[int, ...]) -> None:
    config = LanguageConfig(64, 2, 4, 2, 16, 160, 96, 1e-5, RopeConfig(1e6, 8192))
    limits = Limits(max_tokens=64, max_batch=2, max_tiles=4, planned=True)
    for target in Target:
        bodies = LOWERINGS[target]
        graph = language_graph(config, limits, prune_layers, scores, lowering=bodies)
        assert uses_plugins(graph) is (target is Target.TENSORRT)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libno-such-driver.so.1")
    with pytest.raises(EngineError, match=r"no NVIDIA driver was found .* or for target tensorrt_rtx$"):
        gpu.fingerprint()


def fake_driver(name: bytes, capability: tuple[int, int], status: int) -> SimpleNamespace:
    """CUDA's driver with one GPU; `status` is what it answers when it is asked to start."""

    def get_name(target: ctypes.Array, size: int, device: ctypes.c_int) -> int:
        target.value = name
        return 0

    def get_attribute(target: object, attribute: int, device: ctypes.c_int) -> int:
        target._obj.value = capability[attribute - gpu.COMPUTE_CAPABILITY_MAJOR]  # type: ignore[attr-defined]
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: status,
        cuDeviceGet=lambda target, index: 0,
        cuDeviceGetName=get_name,
        cuDeviceGetAttribute=get_attribute,
    )


def test_fingerprint_is_name_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: fake_driver(b"NVIDIA H100 80GB HBM3", (9, 0), status=0))
    assert gpu.fingerprint() == "NVIDIA H100 80GB HBM3 (9.0)"
    assert gpu.find_gpu().capability() == 90


def test_a_gpu_without_kernels(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: gpu.Gpu("Tesla T4", 7, 5))
    with pytest.raises(EngineError, match=r"^target tensorrt has no kernels for the GPU here, Tesla T4 \(7.5\); build"):
        tensorrt.open_compiler(BuildConfig(Path(), Path(), Path(), target=Target.TENSORRT, precision=Precision.BF16))


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: fake_driver(b"", (0, 0), status=100))
    with pytest.raises(EngineError, match=r"finds no GPU that it can use \(CUDA error 100\)"):
        gpu.fingerprint()
