"""The machine and the software that a benchmark ran on, in words."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import engine

PACKAGES = (
    "onnxruntime",
    "tensorrt-rtx-cu13-bindings",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "numpy",
    "safetensors",
    "torch",
    "transformers",
    "openvino",
    "onnxruntime-genai",
    "llama-cpp-python",
    "gguf",
)
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
"""Instructions that decide how fast matrices multiply."""


def describe_machine(threads: int) -> str:
    """Markdown lines."""
    info = _cpu_info()
    flags = info.get("flags", "").split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return "\n".join(
        (
            f"- CPU: {info.get('model name', platform.processor() or platform.machine())}"
            f" ({', '.join(info[key] for key in ('cpu family', 'model', 'stepping') if key in info)}),"
            f" {len(os.sched_getaffinity(0))} logical cores, {threads} threads used",
            f"- Instructions: {', '.join(flag for flag in FLAGS if flag in flags) or 'unknown'}",
            f"- Memory: {memory:.1f} GiB; huge pages: {_huge_pages()}",
            f"- System: {platform.system()} {platform.release()}, Python {platform.python_version()}",
            f"- Versions: {describe_versions()}",
        )
    )


def describe_versions() -> str:
    return ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def stamp() -> str:
    """When, and with which engine."""
    versions = f"sgl-engine {engine.__version__}, onnxruntime {_version('onnxruntime')}"
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {versions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpu_info() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _huge_pages() -> str:
    try:
        setting = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    return setting.partition("[")[2].partition("]")[0]
