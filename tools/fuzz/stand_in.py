"""A pair without engines, behind a whole pipeline: everything but the numbers is as when it is built.

Shapes: B slots of one step, R wanted rows, L layers, V visual tokens.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from engine.bindings import Scoring
from engine.build.tokenizer import FILE, write_tokenizer
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, ServingConfig
from engine.families import read_model
from engine.manifest import FORMAT_VERSION, EngineModel, Manifest, interface_of
from engine.model_config import LanguageConfig, VisionConfig
from engine.runtime.model import Running, VisionLanguageModel
from engine.runtime.pipeline import LoadedPair, SglPipeline
from engine.runtime.prefix_cache import PrefixCache
from engine.runtime.prompt import Need, Rows
from engine.runtime.tokenizer import Tokenizer
from engine.target import Device, Precision, Target
from engine.towers import tower_of
from tools.fuzz.checkpoint_files import chat_layout, library_layout

MAX_TOKENS = 1024
PRUNE_LAYERS = (1, 2)
"""Of the large model."""
LAYERS = 3
SERVING = ServingConfig(max_running=4, max_waiting=16)


class StandInLanguage:
    """Slots by number; the logits follow from the last token only."""

    def __init__(self, config: LanguageConfig) -> None:
        self._config = config
        self._slots: dict[int, Need] = {}
        self._opened = 0

    def nbytes(self, need: Need) -> int:
        return sum(need.lengths)

    def has_place(self) -> bool:
        return len(self._slots) < SERVING.max_running

    def open(self, need: Need) -> int:
        self._opened += 1
        self._slots[self._opened] = need
        return self._opened

    def extend(self, slot: int, rows: Rows, wanted: np.ndarray, scored: np.ndarray) -> np.ndarray:
        return self._logits(rows.ids[wanted])

    def step(self, slots: Sequence[int], tokens: np.ndarray, scored: np.ndarray) -> np.ndarray:
        return self._logits(tokens)

    def visual_scores(self, slot: int) -> np.ndarray:
        """[L,V]"""
        columns = self._slots[slot].num_columns()
        shape = self._config.num_layers, columns
        return np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape) + 1

    def value_norms(self, slot: int) -> np.ndarray:
        """[V]"""
        return np.cos(np.arange(self._slots[slot].num_columns(), dtype=np.float32)) + 2

    def truncate(self, slot: int, length: int) -> None: ...

    def close(self, slot: int) -> None:
        del self._slots[slot]

    def row_bytes(self) -> int:
        return 1

    def save(self, slot: int, start: int, stop: int) -> int:
        return 0

    def holds(self, saved: int) -> bool:
        return True

    def restore(self, slot: int, saved: int, count: int) -> None: ...

    def forget(self, saved: int) -> None: ...

    def _logits(self, tokens: np.ndarray) -> np.ndarray:
        """[R] -> [R,vocab]"""
        turns = np.outer(np.asarray(tokens) + 1, np.arange(self._config.vocab_size) + 1)
        return (3 * np.sin(0.37 * turns)).astype(np.float32)


class StandInVision:
    """Features are zeros."""

    pieces_per_call = 4

    def __init__(self, config: VisionConfig) -> None:
        self._config = config

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        rows = len(pixels) * tower_of(self._config).rows_per_piece(self._config, pixels)
        return np.zeros((rows, self._config.output_size), np.float32)


class StandInPair(LoadedPair):
    """Of the tiny checkpoints that are spoilt elsewhere; their tokenizers are whole."""

    def __init__(self) -> None:
        running = Running(1, Device.CPU, SERVING, PrefixCache(SERVING.prefix_cache))
        with TemporaryDirectory() as place:
            models, tokenizers = {}, {}
            for role, files in (("small", chat_layout()), ("large", library_layout())):
                directory = Path(place) / role
                directory.mkdir()
                for name, data in files.items():
                    (directory / name).write_bytes(data)
                models[role] = _engine_model(role, directory)
                write_tokenizer(directory, directory)
                tokenizers[role] = Tokenizer.load(directory / FILE)
        super().__init__(Path("stand-in"), _manifest(models), running, None)
        for role, model in models.items():
            parts = StandInVision(model.config.vision), StandInLanguage(model.config.language)
            limits = self.manifest.limits(role)
            self._models[role] = VisionLanguageModel(role, model, limits, tokenizers[role], *parts, running)


@cache
def stand_in_pipeline() -> SglPipeline:
    """One for all cases of a process: what a case leaves behind is found by the next."""
    return SglPipeline(StandInPair(), SERVING, Device.CPU)


def _engine_model(role: str, directory: Path) -> EngineModel:
    config = read_model(directory)[1]
    config = replace(config, language=replace(config.language, num_layers=LAYERS))
    prune_layers = () if role == "small" else PRUNE_LAYERS
    interface = interface_of(BuildConfig(directory, directory, directory), config, prune_layers, Scoring.DEFERRED)
    return EngineModel(config, "ab" * 32, prune_layers, Scoring.DEFERRED, interface)


def _manifest(models: dict[str, EngineModel]) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        engine_version="0.1.0",
        created="2025-01-02T03:04:05+00:00",
        target=Target.ONNXRUNTIME,
        precision=Precision.FP32,
        max_tokens=MAX_TOKENS,
        max_batch=SERVING.max_running,
        world_size=1,
        versions={},
        models=models,
        components={},
        guidance=GuidanceConfig(),
        exit=ExitConfig(),
    )
