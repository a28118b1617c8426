"""The project as `pip install` leaves it, outside of the checkout."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


def build_wheel(directory: Path) -> Path:
    """From a copy of the sources, so that nothing is left in the checkout."""
    source = directory / "source"
    for path in ("pyproject.toml", "README.md", *_tracked()):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-c", BUILD, str(directory)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return directory / done.stdout.split()[-1]


def install(wheel: Path, environment: Path) -> Path:
    """Into an environment that holds nothing else but what this one's packages are -> its `bin`."""
    venv.create(environment, with_pip=False)
    (site,) = (environment / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    # A path in a .pth file is searched, but its own .pth files, such as the checkout's, are not read.
    (site / "dependencies.pth").write_text(str(Path(numpy.__file__).parent.parent))
    return environment / "bin"


def contents(wheel: Path) -> set[str]:
    """Top-level names, without the package's own metadata."""
    with zipfile.ZipFile(wheel) as file:
        tops = {name.partition("/")[0] for name in file.namelist()}
    return {top for top in tops if not top.endswith(".dist-info")}


def _tracked() -> list[Path]:
    """What a package of `engine` may hold."""
    found = [path for path in (ROOT / "engine").rglob("*") if path.suffix in (".py", ".json", ".html", ".js", ".css")]
    return [path.relative_to(ROOT) for path in [*found, ROOT / "build_engines.py", *(ROOT / "tools").rglob("*.py")]]
