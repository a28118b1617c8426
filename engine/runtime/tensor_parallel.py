"""A model on several ranks, behind the same interface as one in this process: the leader says, all ranks do.

Every call goes to all ranks at once (`Ranks`) and comes back from rank 0. The leader alone samples, so all ranks agree.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import engine
from engine.manifest import CONVERTER, Manifest
from engine.runtime.prompt import Request
from engine.target import Device

MPIEXEC = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""What MPICH and its relatives, and Open MPI, set for the processes that they start."""
OPEN = "open"
"""The method that all ranks refuse together when they do not fit together."""
VERSIONED = {
    Device.CPU: ("numpy", "onnxruntime", "mpi4py"),
    Device.CUDA: ("numpy", "torch", "mpi4py", "nccl4py", "nvidia-nccl-cu13"),
}
"""Packages that must be the same on all ranks; the version of a plan's library is the manifest's."""


@dataclass(frozen=True)
class Identity:
    """What ranks must have in common to compute together."""

    engine_version: str
    versions: dict[str, str]
    components: str
    """SHA-256 over keys and files of the engine directory."""

    def difference(self, other: "Identity") -> str | None:
        """What is different there, in words; None if nothing is."""
        if self.components != other.components:
            return "has other fingerprints than the engine that was opened"
        for name, mine in {"sgl-engine": self.engine_version, **self.versions}.items():
            theirs = {"sgl-engine": other.engine_version, **other.versions}[name]
            if mine != theirs:
                return f"is run by {name} {theirs} instead of {mine}"
        return None


def identify(manifest: Manifest) -> Identity:
    """Of this process."""
    content = json.dumps(CONVERTER.unstructure(manifest.components), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    packages = VERSIONED[rank_device(manifest)]
    return Identity(engine.__version__, {name: _version(name) for name in packages}, digest)


def rank_device(manifest: Manifest) -> Device:
    """What the ranks of an engine run on."""
    return manifest.target.devices()[0]


def started_by_mpiexec() -> bool:
    """Whether this process is one of several that `mpiexec` started."""
    return bool(announced_sizes())


def announced_sizes() -> list[int]:
    """How many processes there are by the variables of what started this one."""
    return [int(os.environ[name]) for name in MPIEXEC if name in os.environ]


class Ranks(Protocol):
    """The ranks of one model. A call runs the method of that name of `tensor_parallel_rank.Rank` on all of them."""

    def open(self, directory: Path, manifest: Manifest, threads: int) -> None:
        """Load the model on every rank; `threads` are shared by those of one machine. Raises EngineError."""

    def call(self, method: str, *arguments: Any) -> Any:
        """What rank 0 returns. Raises EngineError when a rank died."""


class ShardedLanguage:
    """A language engine of several ranks. One `ShardedGeneration` at a time runs on it."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def prefill(self, requests: Sequence[Request], max_new_tokens: int) -> "ShardedGeneration":
        """Like `LanguageModel.prefill`."""
        return ShardedGeneration(self._ranks, self._ranks.call("prefill", requests, max_new_tokens))


class ShardedGeneration:
    """Like `Generation`; caches and accumulators stay with the ranks."""

    def __init__(self, ranks: Ranks, logits: np.ndarray) -> None:
        self._ranks, self.logits = ranks, logits

    def visual_scores(self, request: int) -> np.ndarray:
        scores: np.ndarray = self._ranks.call("visual_scores", request)
        return scores

    def decode(self, tokens: np.ndarray, active: np.ndarray, scored: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._ranks.call("decode", tokens, active, scored)
        return logits

    def score(self, request: int, visual_kept: np.ndarray, answer: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._ranks.call("score", request, visual_kept, answer)
        return logits


class ShardedVision:
    """A vision encoder whose tiles are shared out among the ranks, each of which holds it whole."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def encode(self, pixel_values: np.ndarray) -> np.ndarray:
        """Like `VisionEncoder.encode`."""
        features: np.ndarray = self._ranks.call("encode", pixel_values)
        return features


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"
