"""The key of a component: equal inputs, and only they, have equal keys."""

import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

import pytest

from engine.build import builder
from engine.build.builder import role_components
from engine.build.read_role import read_role
from engine.build.source import ROOT, source_fingerprint, sources
from engine.build.staging import component_key
from engine.build.toolchains import open_compiler
from engine.config import BuildConfig, GuidanceConfig
from engine.target import Precision
from tools.make_random_pair import write_pair


@dataclass(frozen=True)
class Twin:
    value: int = 1


@dataclass(frozen=True)
class OtherTwin:
    value: int = 1


class Colour(Enum):
    RED = 1


def test_component_key_tells_parts_apart() -> None:
    parts = [
        (),
        ("a", "b"),
        ("ab",),
        (["a", "b"],),
        (1,),
        ("1",),
        (1.0,),
        (None,),
        (Twin(),),
        (OtherTwin(),),
        (Twin(2),),
        (GuidanceConfig(),),
        (GuidanceConfig(retention_ratio=0.3),),
        (Precision.INT8,),
        (Precision.FP32,),
        (PurePosixPath("a/b"),),
    ]
    assert len({component_key(*part) for part in parts}) == len(parts)


def test_component_key_is_stable() -> None:
    assert component_key({"b": 1, "a": (2, Colour.RED)}) == component_key({"a": [2, 1], "b": 1})
    # SHA-256 of ["small/vision",{"Twin":{"value":1}}]: keys outlive the process that made them.
    expected = "ba72d0b110bad78dadcf8f32c8df7f28bf07f521c03a0768b2ec6f50ff7a3acd"
    assert component_key("small/vision", Twin()) == expected
    with pytest.raises(TypeError, match="cannot hold object"):
        component_key(object())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of InternVL2's."""
    directory = tmp_path_factory.mktemp("pair")
    write_pair(directory, seed=1)
    return directory


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this package, which may be edited, in the place of its source."""
    root = tmp_path / "engine"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("__pycache__", "published"))
    monkeypatch.setattr(builder, "source_fingerprint", lambda modules: source_fingerprint(modules, root))
    return root


def keys(pair: Path) -> dict[str, str]:
    """Of all components of the small model."""
    build = BuildConfig(pair / "small", pair / "large", pair / "out", max_tokens=1024)
    role = read_role(build, "small", build.small, (), True, lambda name, fraction: None)
    return {component.name: component.key for component in role_components(build, role, open_compiler(build))}


def append(file: Path, line: str) -> None:
    file.write_text(file.read_text() + line)


def test_a_new_family_makes_nothing_stale(checkpoints: Path, source: Path) -> None:
    before = keys(checkpoints)
    family = source / "families" / "new_family"
    shutil.copytree(source / "families" / "internvl2", family)
    append(family / "config.py", "\nOTHER = True\n")
    registry = source / "families" / "__init__.py"
    changed = registry.read_text().replace("import internvl, internvl2", "import internvl, internvl2, new_family")
    assert changed != registry.read_text()
    registry.write_text(changed)
    assert keys(checkpoints) == before


@pytest.mark.parametrize(
    "other",
    [
        "families/internvl/config.py",
        "plugins/cached_attention/tensorrt.py",
        "plugins/targets/tensorrt_rtx.py",
        "plugins/lowerings.py",
        "build/targets/tensorrt.py",
        "build/toolchains.py",
        "build/staging.py",
        "runtime/loop.py",
        "cli/ask.py",
        "serve/triton/desk.py",
        "planning/fit.py",
    ],
)
def test_what_an_engine_is_not_made_by_makes_nothing_stale(checkpoints: Path, source: Path, other: str) -> None:
    before = keys(checkpoints)
    append(source / other, "\n# Changed.\n")
    assert keys(checkpoints) == before


@pytest.mark.parametrize(
    ("used", "stale"),
    [
        ("plugins/cached_attention/onnxruntime.py", {"vision", "language/rank0"}),
        ("plugins/targets/onnxruntime.py", {"vision", "language/rank0"}),
        ("plugins/received_attention/onnxruntime.py", {"vision", "language/rank0"}),
        ("families/internvl2/sources.py", {"vision", "language/rank0"}),
        ("build/language.py", {"vision", "language/rank0"}),
        ("build/targets/onnxruntime_int8.py", {"vision", "language/rank0"}),
        ("build/tokenizer.py", {"tokenizer"}),
        ("families/fields.py", {"tokenizer", "vision", "language/rank0"}),
    ],
)
def test_what_a_component_is_made_by_makes_it_stale(
    checkpoints: Path, source: Path, used: str, stale: set[str]
) -> None:
    before = keys(checkpoints)
    append(source / used, "\n# Changed.\n")
    after = keys(checkpoints)
    assert {name.removeprefix("small/") for name, key in after.items() if key != before[name]} == stale


def test_imports_are_followed_wherever_they_are(tmp_path: Path) -> None:
    """Inside functions, by `import a.b`, of modules and of names; an `__init__` where something is taken from it."""
    files = {
        "a.py": "import json\nimport engine.b as b\ndef f():\n    from engine.package import c, name",
        "b.py": "from engine import a",
        "package/__init__.py": "from engine.package.d import name",
        "package/c.py": "",
        "package/d.py": "",
        "package/e.py": "",
        "f.py": "from engine.package.c import anything\nfrom engine.package import e",
        "__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    names = ["engine.a", "engine.b", "engine.package", "engine.package.c", "engine.package.d"]
    assert sorted(sources(["engine.a"], tmp_path)) == names
    assert sorted(sources(["engine.f"], tmp_path)) == ["engine.f", "engine.package.c", "engine.package.e"]
    before = source_fingerprint(["engine.a"], tmp_path)
    (tmp_path / "package/d.py").write_text("name = 1")
    assert source_fingerprint(["engine.a"], tmp_path) != before
