"""A Triton Inference Server from the package registry in an environment of its own, for tests and benchmarks."""

import fcntl
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError

ROOT = Path(__file__).parent.parent.parent
VENV = ROOT / ".server-venv"
WHEEL = "nvidia-pytriton==0.7.0"
"""Carries the server's binary, version 2.51, whose Python backend wants numpy 1."""
NEEDS = "the server needs Linux x86_64 with glibc 2.35 and a Python 3.11, 3.12 or 3.13 that has a shared libpython"
VERSIONS = ("3.11", "3.12", "3.13")
STUB = "triton_python_backend_stub"
PROBE = """
import sys, sysconfig, pathlib
directory = sysconfig.get_config_var("LIBDIR")
shared = pathlib.Path(directory, sysconfig.get_config_var("INSTSONAME") or "-").exists()
print("%d.%d" % sys.version_info[:2], directory if shared else "")
"""


class ServerError(EngineError):
    """A server that cannot be installed or does not start."""


class UnsuitableMachine(ServerError):
    """This machine cannot run the server."""


@dataclass(frozen=True)
class Environment:
    """server: the directory of binary, backend and stubs. libraries: where the interpreter's libpython is."""

    python: Path
    server: Path
    version: str
    libraries: str

    def command(self, repository: Path, backends: Path) -> list[str]:
        """Start arguments without addresses; writes the backend directory. Raises ServerError."""
        for directory in (repository, backends):
            if re.search(r"\s", str(directory)):
                raise ServerError(
                    f"the server's Python backend cannot start from {directory}: a path with spaces is split; "
                    "choose another directory"
                )
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


def install() -> Environment:
    """Make it at the first call, by one process. Raises ServerError."""
    interpreter, version, libraries = _interpreter()
    with VENV.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make(interpreter, version)
    server = VENV / "lib" / f"python{version}" / "site-packages" / "pytriton" / "tritonserver"
    return Environment(VENV / "bin" / "python", server, version, libraries)


def _interpreter() -> tuple[str, str, str]:
    """One that the server has a stub for, with its shared library: path, version, the library's directory."""
    name, version = platform.libc_ver()
    suits = sys.platform == "linux" and platform.machine() == "x86_64" and name == "glibc"
    if suits and tuple(map(int, version.split("."))) >= (2, 35):
        for candidate in (sys.executable, *(f"python{version}" for version in VERSIONS)):
            path = shutil.which(candidate)
            probed = subprocess.run([path, "-c", PROBE], capture_output=True, text=True) if path else None
            if path and probed and probed.returncode == 0:
                version, _, libraries = probed.stdout.strip().partition(" ")
                if version in VERSIONS and libraries:
                    return path, version, libraries
    raise UnsuitableMachine(NEEDS)


def _make(interpreter: str, version: str) -> None:
    wanted = hashlib.sha256(f"{WHEEL} {version} {ROOT}".encode() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = VENV / "stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--python", str(VENV), "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [interpreter, "-m", "venv", "--without-pip", str(VENV)],
        # Without the wheel's own Python interface and what that needs.
        [*pip, "--no-deps", WHEEL],
        [*pip, "numpy<2", "--editable", f"{ROOT}[mpi]"],
    ):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise ServerError(f"{shlex.join(command)} failed ({reason[0]}); run it by hand")
    stamp.write_text(wanted)
