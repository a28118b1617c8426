"""`sgl serve` in a process of its own, and a browser to look at its page with."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from os import geteuid
from pathlib import Path
from typing import Any

from engine.errors import EngineError

PATIENCE = 120_000
"""Milliseconds that anything may take on a busy machine."""
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def serving(engine_directory: Path, *options: str) -> Iterator[str]:
    """A server on a free port -> its address. options: of `sgl serve`. Raises EngineError."""
    command = [sys.executable, "-m", "engine.cli", "serve", str(engine_directory), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            line = server.stdout.readline()
            words = [word.rstrip(",") for word in line.split() if word.startswith("http://")]
            if not words:
                raise EngineError(f"sgl serve {engine_directory} did not start; it says above why")
            yield words[0]
        finally:
            server.terminate()


@contextmanager
def browser() -> Iterator[Any]:
    """-> a playwright Browser. Raises EngineError where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise EngineError("playwright is missing; pip install playwright") from None
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise EngineError(f"no browser is installed, of {', '.join(NAMES)}; apt-get install chromium")
    with sync_playwright() as playwright:
        # Root has no sandbox.
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if geteuid() == 0 else [])
        try:
            yield opened
        finally:
            opened.close()
