"""A program of ours in the place of `python`: what was started as `python -m …` runs it with the same arguments."""

import shlex
import sys
from pathlib import Path


def stand_in_python(directory: Path, program: Path) -> str:
    """Its path, in a directory whose name has a space: whoever starts it must not split the path there."""
    place = directory / "a python"
    place.mkdir()
    python = place / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(program)])} "$@"\n')
    python.chmod(0o755)
    return str(python)
