"""What a target's compiler is to the rest of the build."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from engine.bindings import Bindings
from engine.build.calibrate import Inputs
from engine.build.storage import Storage
from engine.build.weights import WeightReader
from engine.config import BuildConfig
from engine.target import Precision

Progress = Callable[[float], None]


@dataclass(frozen=True)
class DeclaredEngine:
    """One engine before a compiler has made files of it.

    graph: without data; bindings: its inputs and outputs; reader: of its parameters' data; calibrate: makes the inputs
    that it may be run on to quantize it; previous: where the files lie, if any do, that this build replaces; whole:
    declares the graph of which this is one rank's share, None where there is one rank; scoring: the scoring engine
    beside it, None where there is none.
    """

    graph: ir.Model
    bindings: Bindings
    reader: WeightReader
    calibrate: Callable[[], Inputs]
    previous: Path
    whole: Callable[[], ir.Model] | None = None
    scoring: "DeclaredEngine | None" = None


class Compiler(Protocol):
    """Turns a declared engine into files that a target's runtime loads."""

    def versions(self) -> Mapping[str, str]:
        """What compiles, and its version: another one makes other files."""

    def gpu(self) -> str | None:
        """The kind of GPU that the files are for; None is any that the target runs on."""

    def write(self, declared: DeclaredEngine, directory: Path, name: str, on_progress: Progress) -> None:
        """Write the files of one engine, all of them called `name` with suffixes. Raises EngineError."""


@dataclass(frozen=True)
class Toolchain:
    """What a target is built with.

    open_compiler: raises EngineError when it cannot compile for these settings, before anything slow; storage: how
    large numbers are in the engines that it makes.
    """

    open_compiler: Callable[[BuildConfig], Compiler]
    storage: Callable[[Precision], Storage]
