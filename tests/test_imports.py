"""Which room may import which, read from the source: the directions of docs/structure.md."""

import ast
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "engine").rglob("*.py"))
BASE = (
    "bounds",
    "json_file",
    "json_schema",
    "build_flags",
    "config",
    "options",
    "target",
    "model_config",
    "dims",
    "bindings",
    "manifest",
    "engine_directory",
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
    "families": {"base", "towers", "video", "families"},
    "plugins": {"base", "plugins"},
    "graphs": {"base", "plugins", "graphs"},
    "towers": {"base", "plugins", "graphs", "towers"},
    "build": {"base", "families", "plugins", "graphs", "towers", "build"},
    "runtime": {"base", "families", "plugins", "towers", "video", "runtime"},
    "video": {"base", "runtime", "video"},
    "planning": {"base", "families", "plugins", "graphs", "towers", "build", "runtime", "planning"},
    "evaluation": {"base", "families", "runtime", "video", "batch", "evaluation"},
    "serve": {"base", "families", "runtime", "video", "serve"},
    "batch": {"base", "families", "runtime", "serve", "batch"},
    "cli": {"base", "families", "build", "runtime", "planning", "evaluation", "serve", "batch", "video", "cli"},
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
    "av": (
        "engine/video/container.py",
        "engine/video/frames.py",
        "engine/video/reader_process.py",
        "engine/video/timeline.py",
        "engine/video/upright.py",
    ),
    "mpi4py": ("engine/runtime/tensor_parallel*.py", "engine/batch/world.py"),
    "tensorrt_rtx_bindings": ("engine/tensorrt_library.py",),
    "onnx": ("engine/build/*", "engine/plugins/*"),
    "onnx_ir": (
        "engine/build/*",
        "engine/plugins/*",
        "engine/graphs/*",
        "engine/towers/*/graph.py",
        "engine/planning/graph_cost.py",
    ),
    "onnxscript": ("engine/build/*", "engine/plugins/*", "engine/graphs/*", "engine/towers/*/graph.py"),
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


def room(name: str) -> str:
    """`engine.graphs.layers` -> `graphs`, `engine.config` -> `base`."""
    part = name.split(".")[1] if "." in name else "__init__"
    return part if part in MAY_IMPORT else "base"


def module(path: str) -> str:
    """`engine/build/layers.py` -> `engine.graphs.layers`, `engine/build/__init__.py` -> `engine.build`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def needed(name: str, source: str, modules: set[str]) -> set[str]:
    """Which of `modules` one of them imports. An import inside a function, or for types only, counts like any other:
    it puts a circle off, and the two still cannot be understood, or changed, one without the other. A package that is
    entered from outside runs its `__init__`, too.
    """
    found = set()
    for imports in imported(source) & modules:
        packages = (imports.rsplit(".", number)[0] for number in range(imports.count(".") + 1))
        found |= {package for package in packages if not f"{name}.".startswith(f"{package}.")}
    return found


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other, the first of them again at the end; none if there are none. By name."""
    graph = {name: needed(name, source, set(sources)) for name, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other() -> None:
    assert circle({module(path): (ROOT / path).read_text(encoding="utf-8") for path in FILES}) == []


@pytest.mark.parametrize(
    "back",
    [
        "from engine.a import thing",
        "import engine.a",
        "def f():\n    from engine.a import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from engine.a import Thing",
        "class C:\n    def f(self):\n        import engine.a as a",
        "from engine.package.inside import thing",
    ],
)
def test_a_circle_is_found(back: str) -> None:
    """Directly, or through the `__init__` of a package that is entered on the way."""
    sources = {
        "engine": "",
        "engine.a": "from engine import b",
        "engine.b": f"from engine import c\n{back}",
        "engine.c": "import json",
        "engine.package": "from engine import a",
        "engine.package.inside": "from engine.package import other",
        "engine.package.other": "from engine import c",
    }
    found = circle(sources)
    assert {"engine.a", "engine.b"} <= set(found)
    assert "engine.c" not in found
    assert circle(sources | {"engine.b": "from engine import c"}) == []


OP = re.compile(r"engine/plugins/(\w+)/")


@pytest.mark.parametrize("path", [path for path in FILES if OP.match(path) and "/targets/" not in path])
def test_of_another_op_only_its_contract_is_imported(path: str) -> None:
    """What lowerings share lies beside the ops."""
    (op,) = OP.findall(path)
    ops = {other for (other,) in map(OP.findall, filter(OP.match, FILES))} - {op, "targets"}
    for name in imported((ROOT / path).read_text(encoding="utf-8")):
        parts = name.split(".")
        if parts[:2] == ["engine", "plugins"] and parts[2:] and parts[2] in ops:
            assert path.endswith("/contract.py") and len(parts) == 3, f"{path} imports {name}"


def violations(path: str, source: str) -> Iterator[str]:
    here = room(module(path))
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
        ("engine/runtime/rope.py", "def f():\n    import engine.graphs.layers"),
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
        ("engine/video/reader.py", "import av"),
        ("engine/runtime/vision.py", "from engine.graphs.layers import Linear"),
        ("engine/towers/internvit/__init__.py", "import onnx_ir as ir"),
        ("engine/towers/internvit/graph.py", "from engine.build.weights import WeightReader"),
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
