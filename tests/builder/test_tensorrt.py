"""Target `tensorrt` where neither its library nor a GPU is: TensorRT-RTX, whose builder has the same interface, stands
in for the library, and a name for the GPU. What is tested is everything around the builder.
"""

import ctypes
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.build import builder, gpu
from engine.build.builder import build_pair
from engine.build.targets import tensorrt
from engine.config import BuildConfig, Precision, Target
from engine.errors import EngineError
from engine.manifest import read_manifest
from engine.plugins import lowering
from tools.make_random_pair import write_pair

GPU = gpu.Gpu("Some GPU", 90)
STAND_IN = "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    directory = tmp_path_factory.mktemp("library")
    (directory / "tensorrt.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    monkeypatch.setattr(tensorrt, "find_gpu", lambda: GPU)
    # Which knows no plugins.
    monkeypatch.setattr(builder, "lowering_for", lambda target: lowering.TENSORRT)


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


def test_scored_attention_and_pruning_are_kernels_of_ours(tmp_path: Path) -> None:
    write_pair(tmp_path, seed=3)
    config = BuildConfig(
        tmp_path / "small", tmp_path / "large", tmp_path, target=Target.TENSORRT, precision=Precision.BF16
    )
    small = builder.read_role(config, "small", config.small, (), True, lambda name, fraction: None)
    large = builder.read_role(config, "large", config.large, None, False, lambda name, fraction: None)
    assert tensorrt.uses_plugins(builder.language_part(config, small).graph)
    assert tensorrt.uses_plugins(builder.language_part(config, large).graph)
    assert not tensorrt.uses_plugins(builder.vision_part(config, small).graph)
    native = replace(config, target=Target.TENSORRT_RTX)
    assert not tensorrt.uses_plugins(builder.language_part(native, small).graph)


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DRIVER", "libno-such-driver.so.1")
    with pytest.raises(EngineError, match=r"no NVIDIA driver was found .* or for target tensorrt_rtx$"):
        gpu.find_gpu()


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


def test_a_gpu_is_its_name_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: fake_driver(b"NVIDIA H100 80GB HBM3", (9, 0), status=0))
    assert str(gpu.find_gpu()) == "NVIDIA H100 80GB HBM3 (9.0)"


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: fake_driver(b"", (0, 0), status=100))
    with pytest.raises(EngineError, match=r"finds no GPU that it can use \(CUDA error 100\)"):
        gpu.find_gpu()
