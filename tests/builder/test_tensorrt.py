"""Target `tensorrt` where neither its library nor a GPU is: TensorRT-RTX, whose builder has the same interface, stands
in for the library, and a name for the GPU. What is tested is everything around the builder.
"""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.build import gpu
from engine.build.builder import build_pair
from engine.build.targets import tensorrt
from engine.config import BuildConfig, Precision, Target
from engine.errors import EngineError
from engine.manifest import read_manifest
from tools.make_random_pair import write_pair

GPU = "Some GPU (9.0)"
STAND_IN = "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    directory = tmp_path_factory.mktemp("library")
    (directory / "tensorrt.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    monkeypatch.setattr(tensorrt, "fingerprint", lambda: GPU)


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
    assert (manifest.target, manifest.gpu) == (Target.TENSORRT, GPU)
    assert manifest.versions["tensorrt"]
    files = manifest.components["large/vision"].files
    assert set(files) == {f"large/vision.{suffix}" for suffix in ("plan", "layers.json", "timing")}
    (tmp_path / "out" / "small" / "vision.plan").unlink()
    assert build_pair(config).built == ("small/vision",), "the earlier measurements are accepted"


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


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda name: fake_driver(b"", (0, 0), status=100))
    with pytest.raises(EngineError, match=r"finds no GPU that it can use \(CUDA error 100\)"):
        gpu.fingerprint()
