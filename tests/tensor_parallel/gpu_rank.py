"""A program of ours, given as `-m MODULE …`, on a machine with as many GPUs as `FAKE_GPUS` says (`stand_in_gpu`)."""

import os
import runpy
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.stand_in_gpu import put_gpus

if __name__ == "__main__":
    put_gpus(pytest.MonkeyPatch(), int(os.environ["FAKE_GPUS"]))
    _, _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
