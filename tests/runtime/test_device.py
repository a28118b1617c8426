"""What runs an engine: the default, and one sentence before the first token when it cannot."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import torch

from engine.cli.__main__ import main
from engine.errors import EngineError
from engine.manifest import Manifest
from engine.runtime import backend, executor_tensorrt
from engine.runtime.executor_onnxruntime_cuda import CudaExecutor
from engine.runtime.executor_tensorrt import require_runtime
from engine.runtime.loading import resolve_device, small_gpu
from engine.target import Device, Precision, Target
from tests import fake_tensorrt
from tests.manifests import example_manifest

HERE = Path("engines/pair")


def built(target: Target, precision: Precision = Precision.BF16, **changes: object) -> Manifest:
    return replace(example_manifest({}), target=target, precision=precision, **changes)  # type: ignore[arg-type]


FP32, FP16 = (built(Target.ONNXRUNTIME, precision) for precision in (Precision.FP32, Precision.FP16))
RTX = built(Target.TENSORRT_RTX, versions={"tensorrt_rtx": fake_tensorrt.__version__})
TENSORRT = built(Target.TENSORRT, versions={"tensorrt": fake_tensorrt.__version__}, gpu="NVIDIA H100 80GB HBM3 (9.0)")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H200 with both packages, as far as anyone asks."""
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, fake_tensorrt)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(executor_tensorrt, "fingerprint", lambda gpu: ("NVIDIA H200 (9.0)", "NVIDIA L40S (8.9)")[gpu])


def refused(manifest: Manifest, device: Device | None) -> str:
    with pytest.raises(EngineError) as caught:
        resolve_device(HERE, manifest, device)
    return str(caught.value)


def test_default_is_what_the_target_is_for(gpu: None) -> None:
    assert resolve_device(HERE, FP32, None) is Device.CPU
    assert resolve_device(HERE, RTX, None) is Device.CUDA
    assert resolve_device(HERE, replace(TENSORRT, gpu="NVIDIA H200 (9.0)"), Device.CUDA) is Device.CUDA


@pytest.mark.parametrize("manifest", [RTX, TENSORRT], ids=lambda manifest: str(manifest.target))
def test_plans_do_not_run_on_a_cpu(manifest: Manifest) -> None:
    assert refused(manifest, Device.CPU) == (
        f"engines/pair was built for target {manifest.target}, which runs on device cuda and not on cpu; "
        "rebuild with --target onnxruntime to run it on a CPU"
    )


def test_other_version_of_the_library(gpu: None) -> None:
    said = refused(replace(RTX, versions={"tensorrt_rtx": "1.6.9"}), None)
    assert "was built with tensorrt_rtx 1.6.9, but 1.7.fake is installed" in said
    assert "install 1.6.9, or rebuild with sgl build" in said


def test_other_gpu(gpu: None) -> None:
    said = refused(TENSORRT, None)
    assert "was built for NVIDIA H100 80GB HBM3 (9.0), but the GPU here is NVIDIA H200 (9.0); rebuild" in said


def test_no_gpu(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs an NVIDIA GPU, and torch" in refused(RTX, None)


def test_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "engine.runtime.executor_tensorrt", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(backend, "has_driver", lambda: False)
    sentence = (
        "engines/pair was to run on an NVIDIA GPU, and no driver of one is here (libcuda.so.1 is missing); use a "
        "machine with a GPU, or "
    )
    assert refused(RTX, None) == f"{sentence}rebuild with --target onnxruntime to run it on a CPU"
    monkeypatch.delitem(sys.modules, "engine.runtime.executor_onnxruntime_cuda", raising=False)
    assert refused(FP16, Device.CUDA) == f"{sentence}give device cpu to run it on a CPU"
    monkeypatch.setattr(backend, "has_driver", lambda: True)
    assert (
        refused(RTX, None) == "target tensorrt_rtx runs on a GPU with torch, which is not installed; pip install torch"
    )


def test_no_library(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert refused(TENSORRT, None).endswith("pip install 'sgl-engine[tensorrt]'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "which needs an NVIDIA GPU, and torch" in refused(TENSORRT, None)


def test_onnxruntime_without_its_cuda_provider(gpu: None) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    assert refused(FP16, Device.CUDA) == (
        f"device cuda needs ONNX Runtime's CUDA provider, and the installed onnxruntime {onnxruntime.__version__} has "
        "none; pip uninstall onnxruntime, then pip install 'sgl-engine[cuda]'"
    )


def test_the_cuda_provider_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "device cuda needs an NVIDIA GPU, and torch" in refused(FP16, Device.CUDA)


def test_a_cuda_provider_that_registers_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a plug-in, once its libraries are found; it is not among those that are compiled in."""
    found = []

    def preload() -> None:
        print("Failed to load libcufft.so")
        found.append(SimpleNamespace(ep_name="CUDAExecutionProvider"))

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(HERE, FP16, Device.CUDA) is Device.CUDA
    assert capsys.readouterr() == ("", "Failed to load libcufft.so\n")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_cuda_provider_that_does_not_load(engine_directory: Path) -> None:
    """ONNX Runtime by itself goes on without the provider."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(EngineError, match=r"^device cuda needs a GPU with NVIDIA's driver, CUDA and cuDNN, and CUDA"):
        CudaExecutor.load(engine_directory / "small" / "vision.onnx", threads=1)


def test_a_float32_engine_runs_on_the_cpu(engine_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(engine_directory), "Hello?", "--device", "cuda"]) == 2
    assert capsys.readouterr() == (
        "",
        f"{engine_directory} was built in precision fp32, which target onnxruntime runs on device cpu only; rebuild "
        "with --precision fp16 or for target tensorrt_rtx\n",
    )


def test_a_rank_has_the_gpu_of_its_number(gpu: None) -> None:
    h200 = replace(TENSORRT, gpu="NVIDIA H200 (9.0)", world_size=2)
    require_runtime(HERE, h200, local_rank=0, local_ranks=2)
    with pytest.raises(EngineError, match=r"built for NVIDIA H200 \(9.0\), but the GPU here is NVIDIA L40S \(8.9\);"):
        require_runtime(HERE, h200, local_rank=1, local_ranks=2)


def test_the_small_model_on_a_gpu_of_its_own(gpu: None) -> None:
    assert small_gpu(HERE, RTX, Device.CUDA, small_apart=False) is None
    assert small_gpu(HERE, RTX, Device.CUDA, small_apart=True) == 1
    assert small_gpu(HERE, FP16, Device.CUDA, small_apart=True) == 1
    with pytest.raises(EngineError, match=r"built for NVIDIA H200 \(9.0\), but the GPU here is NVIDIA L40S \(8.9\);"):
        small_gpu(HERE, replace(TENSORRT, gpu="NVIDIA H200 (9.0)"), Device.CUDA, small_apart=True)
    with pytest.raises(EngineError, match=r"was to run on 3 GPUs of this machine, and torch sees 2; use "):
        small_gpu(HERE, replace(RTX, world_size=2), Device.CUDA, small_apart=True)
    with pytest.raises(
        EngineError, match=r"small_apart gives the small model a GPU of its own, and engines/pair runs on "
    ):
        small_gpu(HERE, FP32, Device.CPU, small_apart=True)


def test_int8_engines_and_their_ranks_run_on_cpus(gpu: None) -> None:
    assert "precision int8, which target onnxruntime runs on device cpu only" in refused(
        replace(FP32, precision=Precision.INT8), Device.CUDA
    )
    assert refused(replace(FP32, world_size=2), Device.CUDA) == (
        "engines/pair was built for world size 2, and ranks of target onnxruntime run on device cpu only; rebuild with "
        "--tp 1 or for target tensorrt_rtx"
    )
