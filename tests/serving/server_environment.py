"""A Triton Inference Server with a Python environment of its own, from the package registry."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
VENV = ROOT / ".server-venv"
WHEEL = "nvidia-pytriton==0.7.0"
"""Carries the server's binary, version 2.51, whose Python backend wants numpy 1."""
STUB = "triton_python_backend_stub"
PROBE = """
import sys, sysconfig, pathlib
directory = sysconfig.get_config_var("LIBDIR")
shared = pathlib.Path(directory, sysconfig.get_config_var("INSTSONAME") or "-").exists()
print("%d.%d" % sys.version_info[:2], directory if shared else "")
"""


@dataclass(frozen=True)
class Environment:
    """server: the directory of binary, backend and stubs. libraries: where the interpreter's libpython is."""

    python: Path
    server: Path
    version: str
    libraries: str

    def command(self, repository: Path, backends: Path) -> list[str]:
        """Start arguments without addresses; writes the backend directory."""
        python = backends / "python"
        python.mkdir(parents=True)
        for file in (self.server / "backends" / "python").iterdir():
            (python / file.name).symlink_to(file)
        (python / STUB).symlink_to(self.server / "python_backend_stubs" / self.version / STUB)
        return [
            str(self.server / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",
        ]

    def variables(self) -> dict[str, str]:
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "LD_LIBRARY_PATH": self.libraries, "OMP_NUM_THREADS": "1"}


def locate() -> Environment:
    """Made at the first call, by one process; skips the test where it cannot be had."""
    if sys.platform != "linux":
        pytest.skip("the server runs on Linux")
    interpreter, version, libraries = _interpreter()
    with (ROOT / ".server-venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make(interpreter, version)
    server = VENV / "lib" / f"python{version}" / "site-packages" / "pytriton" / "tritonserver"
    return Environment(VENV / "bin" / "python", server, version, libraries)


def _interpreter() -> tuple[str, str, str]:
    """One that the server has a stub for, with its shared library."""
    for name in (sys.executable, "python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        probed = subprocess.run([path, "-c", PROBE], capture_output=True, text=True) if path else None
        if path and probed and probed.returncode == 0:
            version, _, libraries = probed.stdout.strip().partition(" ")
            if version in ("3.11", "3.12", "3.13") and libraries:
                return path, version, libraries
    pytest.skip("the server needs Python 3.11 to 3.13 with a shared libpython")


def _make(interpreter: str, version: str) -> None:
    wanted = hashlib.sha256(f"{WHEEL} {version} {ROOT}".encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = VENV / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [interpreter, "-m", "venv", str(VENV)],
        [*pip, "--no-deps", WHEEL],
        [*pip, "numpy<2", "--editable", str(ROOT)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no server: {' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    stamp.write_text(wanted)
