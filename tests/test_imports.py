"""Which room may import which, read from the source: the directions of docs/structure.md."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "engine").rglob("*.py"))
BASE = (
    "bounds",
    "json_file",
    "build_flags",
    "config",
    "options",
    "target",
    "model_config",
    "dims",
    "bindings",
    "manifest",
    "verification",
    "remedy",
    "parallel",
    "errors",
    "gpu",
    "units",
    "tensorrt_library",
    "__init__",
)
MAY_IMPORT = {
    "base": {"base"},
    "families": {"base", "families"},
    "plugins": {"base", "plugins"},
    "build": {"base", "families", "plugins", "build"},
    "runtime": {"base", "families", "plugins", "runtime"},
    "planning": {"base", "families", "plugins", "build", "runtime", "planning"},
    "evaluation": {"base", "families", "runtime", "evaluation"},
    "serve": {"base", "families", "runtime", "serve"},
    "batch": {"base", "families", "runtime", "serve", "batch"},
    "cli": {"base", "families", "build", "runtime", "planning", "evaluation", "serve", "batch", "cli"},
}
ONLY_IN = {
    "onnxruntime": (
        "engine/build/targets/onnxruntime*.py",
        "engine/plugins/*/onnxruntime.py",
        "engine/runtime/executor_onnxruntime*.py",
    ),
    "tensorrt": (
        "engine/build/targets/tensorrt*.py",
        "engine/plugins/*/tensorrt*.py",
        "engine/plugins/tensorrt*.py",
        "engine/tensorrt_library.py",
    ),
    "mpi4py": ("engine/runtime/tensor_parallel*.py", "engine/batch/world.py"),
    "tensorrt_rtx_bindings": ("engine/tensorrt_library.py",),
    "onnx": ("engine/build/*", "engine/plugins/*"),
    "onnx_ir": ("engine/build/*", "engine/plugins/*", "engine/planning/graph_cost.py"),
    "onnxscript": ("engine/build/*", "engine/plugins/*"),
    "torch": (
        "engine/plugins/*/launch.py",
        "engine/runtime/executor_onnxruntime_cuda.py",
        "engine/runtime/executor_tensorrt.py",
        "engine/runtime/gpu_buffers.py",
        "engine/runtime/communicator.py",
    ),
    "nccl": ("engine/runtime/communicator.py",),
    "triton": ("engine/plugins/*/kernel*.py", "engine/plugins/compile.py"),
    "transformers": (),
    "tools": (),
    "tests": (),
    "build_engines": (),
}


def imported(source: str) -> set[str]:
    """Dotted names of all modules that a source imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute, so that rooms can be told apart"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str:
    """`engine.build.layers` -> `build`, `engine.config` -> `base`."""
    part = module.split(".")[1] if "." in module else "__init__"
    return part if part in MAY_IMPORT else "base"


def violations(path: str, source: str) -> Iterator[str]:
    here = room(path.removesuffix(".py").replace("/", "."))
    for name in sorted(imported(source)):
        package = name.partition(".")[0]
        if package == "engine" and room(name) not in MAY_IMPORT[here]:
            yield f"{path} is in {here} and imports {name}"
        if package in ONLY_IN and not any(fnmatch(path, place) for place in ONLY_IN[package]):
            yield f"{path} imports {package}"


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_its_room_may(path: str) -> None:
    assert list(violations(path, (ROOT / path).read_text(encoding="utf-8"))) == []


def test_every_module_lies_in_a_known_room() -> None:
    parts = {Path(path).parts[1].removesuffix(".py") for path in FILES}
    assert parts == {*BASE, *MAY_IMPORT} - {"base"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/build/layers.py", "from engine.runtime.rope import angles"),
        ("engine/runtime/rope.py", "from engine import build"),
        ("engine/runtime/rope.py", "def f():\n    import engine.build.layers"),
        ("engine/config.py", "from engine.families import by_name"),
        ("engine/families/base.py", "import engine.plugins.function"),
        ("engine/plugins/function.py", "from engine.build import graph"),
        ("engine/runtime/model.py", "import onnxruntime"),
        ("engine/build/builder.py", "import onnxruntime.quantization"),
        ("engine/runtime/model.py", "import onnx_ir as ir"),
        ("engine/build/weights.py", "from torch import nn"),
        ("engine/plugins/visual_attention/kernel.py", "import torch"),
        ("engine/runtime/guidance.py", "import triton.language as tl"),
        ("engine/build/weights.py", "from transformers.models import auto"),
        ("engine/build/targets/onnxruntime.py", "import tensorrt"),
        ("engine/build/targets/tensorrt_plan.py", "import tensorrt_rtx_bindings"),
        ("engine/config.py", "from engine.cli.command_line import positive"),
        ("engine/runtime/pipeline.py", "from mpi4py import MPI"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(list(violations(path, source))) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("engine/build/layers.py", "from engine.plugins import function\nimport onnxscript"),
        ("engine/runtime/executor_onnxruntime.py", "import onnxruntime"),
        ("engine/runtime/rope.py", "import engine"),
        ("engine/families/base.py", "from engine.config import ModelConfig"),
    ],
)
def test_an_allowed_import_is_not(path: str, source: str) -> None:
    assert list(violations(path, source)) == []
