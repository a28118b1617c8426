"""Executor of one rank's engine on ONNX Runtime: its stages one after another, an all-reduce between two."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from engine.bindings import partial_sum
from engine.errors import ManifestError
from engine.parallel import stage_path
from engine.runtime.executor import AllReduce, HostBuffers, Threads
from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor
from engine.runtime.executor_onnxruntime_session import DTYPES, Declared


class StagesExecutor(HostBuffers):
    """What passes between stages lies in buffers that stay bound until an input's size changes."""

    def __init__(self, stages: Sequence[OnnxRuntimeExecutor], all_reduce: AllReduce) -> None:
        self._stages = stages
        self._all_reduce = all_reduce
        self._inputs = {name: value for stage in self._stages for name, value in stage.inputs.items()}
        self._between = _assign_buffers(self._stages)
        self._buffers: dict[tuple[Declared, int], np.ndarray] = {}
        self._sizes: dict[str, int] = {}
        """Of the named dimensions, as the inputs have them now."""
        self._stale = True

    @classmethod
    def load(cls, path: Path, threads: Threads, all_reduce: AllReduce) -> "StagesExecutor":
        """Raises EngineError."""
        paths = list(takewhile(Path.exists, (stage_path(path, index) for index in count())))
        if not paths:
            raise ManifestError(f"{stage_path(path, 0)} is missing; rebuild it with sgl build")
        return cls([OnnxRuntimeExecutor.load(stage, threads) for stage in paths], all_reduce)

    def bind_input(self, name: str, array: np.ndarray) -> None:
        for stage in self._stages:
            if name in stage.inputs:
                stage.bind_input(name, array)
        for dim, size in zip(self._inputs[name].dims, array.shape, strict=True):
            if isinstance(dim, str) and self._sizes.get(dim) != size:
                self._sizes[dim] = size
                self._stale = True

    def bind_output(self, name: str, array: np.ndarray) -> None:
        for stage in self._stages:
            if name in stage.outputs:
                stage.bind_output(name, array)

    def run(self) -> None:
        if self._stale:
            self._bind_between()
        for index, stage in enumerate(self._stages[:-1]):
            stage.run()
            self._all_reduce(self._buffers[self._between[partial_sum(index)]])
        self._stages[-1].run()

    def _bind_between(self) -> None:
        self._buffers = {buffer: self._allocate(buffer[0]) for buffer in self._between.values()}
        for stage in self._stages:
            for name in stage.inputs.keys() & self._between.keys():
                stage.bind_input(name, self._buffers[self._between[name]])
            for name in stage.outputs.keys() & self._between.keys():
                stage.bind_output(name, self._buffers[self._between[name]])
        self._stale = False

    def _allocate(self, value: Declared) -> np.ndarray:
        return np.empty([self._sizes[dim] if isinstance(dim, str) else dim for dim in value.dims], DTYPES[value.type])


def _assign_buffers(stages: Sequence[OnnxRuntimeExecutor]) -> dict[str, tuple[Declared, int]]:
    """Each value between stages -> its buffer: what it holds, and a number.

    Two values share a buffer when they are declared alike and no stage sees both: the hidden states of all layers then
    take as much memory as those of two.
    """
    last_use = {name: index for index, stage in enumerate(stages) for name in stage.inputs}
    buffers: dict[str, tuple[Declared, int]] = {}
    free: defaultdict[Declared, list[int]] = defaultdict(list)
    made: defaultdict[Declared, int] = defaultdict(int)
    for index, stage in enumerate(stages):
        for name, value in stage.outputs.items():
            if name in last_use:
                if not free[value]:
                    free[value].append(made[value])
                    made[value] += 1
                buffers[name] = value, free[value].pop()
        for name in stage.inputs.keys() & buffers.keys():
            if last_use[name] == index:
                value, number = buffers[name]
                free[value].append(number)
    return buffers
