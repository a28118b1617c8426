"""How fast a plan's language model is on this GPU: beside transformers in bf16, and beside what the chip can do.

Dimensions are InternVL2-1B's (Qwen2-0.5B), weights are random, attention is scored as in the small model of a pair.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from engine.build.compiler import Compiler
from engine.build.engines import language_engine
from engine.build.language import language_graph
from engine.build.read_role import read_role
from engine.build.toolchains import open_compiler
from engine.config import BuildConfig
from engine.dims import UNBOUNDED
from engine.errors import EngineError
from engine.manifest import limits_of
from engine.model_config import LanguageConfig
from engine.parallel import Shard
from engine.planning import graph_cost
from engine.planning.storage import storage_of
from engine.plugins.lowerings import LOWERINGS
from engine.runtime.arrays import to_host
from engine.runtime.language import LanguageModel
from engine.runtime.loading import load, load_scoring
from engine.target import Precision, Target
from tools.benchmark.engines import write_model
from tools.benchmark.peers import write_transformers_checkpoint
from tools.benchmark.runners import EngineRunner
from tools.benchmark.sizes import SIZES, PromptSize, make_answer, make_prompt, make_text_prompt
from tools.gpu_check.check import Check, Line, Measured, Missing
from tools.gpu_check.machine import measure_machine

PROMPT = PromptSize(tiles=7, text_tokens=64)
TOKENS = 64
"""Decoded after the prompt."""
RUNS = 5


class Transformers:
    """`Qwen2ForCausalLM` in bf16 on the GPU, sdpa attention, its default cache, the head on the last token only."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa")
        self._model = model.to("cuda").eval()
        self._cache: Any = None

    def prefill(self, ids: np.ndarray) -> None:
        self._cache = None
        self._feed(ids)

    def decode(self, tokens: np.ndarray) -> None:
        for token in tokens:
            self._feed(np.array([token]))

    @torch.no_grad()
    def _feed(self, ids: np.ndarray) -> None:
        tokens = torch.from_numpy(ids)[None].to("cuda")
        output = self._model(tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        output.logits.argmax().item()


def speed_check(name: str, target: Target) -> Check:
    def measure() -> Iterator[Measured | Missing]:
        with TemporaryDirectory(prefix="gpu-check-") as work:
            try:
                yield from compare(Path(work), target)
            except EngineError as error:
                for _ in LINES:
                    yield Missing(str(error))

    title = f"Language model of InternVL2-1B's dimensions, target {target} in bf16, against transformers in bf16"
    return Check(name, title, True, LINES, measure)


LINES = (
    Line("prefill: transformers' time over ours", "x"),
    Line("decode: transformers' time over ours", "x"),
    Line("prefill: share of the measured bf16 matrix rate", "of all"),
    Line("decode: share of the measured copy bandwidth", "of all"),
)


def compare(work: Path, target: Target) -> Iterator[Measured]:
    """A value for each line, in their order. Raises EngineError before the first."""
    compiler = open_compiler(BuildConfig(work, work, work, target=target, precision=Precision.BF16))
    model = write_model(work / "checkpoint", SIZES["1b"].small, lambda fraction: None)
    config, prompt = model.config.language, make_prompt(model.config, PROMPT)
    text, answer = make_text_prompt(model.config, PROMPT), make_answer(model.config, TOKENS)
    ours = EngineRunner(build(work, model.directory, target, compiler), scores=True)
    prefill = seconds(lambda: to_host(ours.prefill(prompt, TOKENS)))
    decode = seconds(lambda: to_host(ours.decode(answer)), before=lambda: ours.prefill(prompt, TOKENS)) / TOKENS
    write_transformers_checkpoint(model.directory, work / "transformers")
    theirs = Transformers(work / "transformers")
    their_prefill = seconds(lambda: theirs.prefill(text.ids))
    their_decode = seconds(lambda: theirs.decode(answer), before=lambda: theirs.prefill(text.ids)) / TOKENS
    yield Measured(their_prefill / prefill, f"{len(prompt.ids)} tokens: {prefill:.4f} s, theirs {their_prefill:.4f} s")
    yield Measured(their_decode / decode, f"a token: {1e3 * decode:.3f} ms, theirs {1e3 * their_decode:.3f} ms")
    bandwidth, matrix_rate = (measured.value for measured in measure_machine())
    rate = prefill_operations(config, len(prompt.ids)) / prefill / 1e12
    yield Measured(rate / matrix_rate, f"{rate:,.0f} of {matrix_rate:,.0f} TFLOP/s")
    read = decode_bytes(config, len(prompt.ids) + TOKENS // 2) / decode / 1e9
    yield Measured(read / bandwidth, f"{read:,.0f} of {bandwidth:,.0f} GB/s; weights and caches")


def build(work: Path, checkpoint: Path, target: Target, compiler: Compiler) -> LanguageModel:
    """Raises EngineError."""
    config = BuildConfig(checkpoint, checkpoint, work, target=target, precision=Precision.BF16, max_tokens=4096)
    role = read_role(config, "small", checkpoint, (), True, lambda name, fraction: None)
    lowering = LOWERINGS[target]
    compiler.write(language_engine(config, role, lowering, Shard()), work, "language", lambda fraction: None)
    executor, limits = load(target, work / "language", threads=1), limits_of(config, role.config, ())
    scoring = load_scoring(lowering.scoring(True), target, work, threads=1)
    return LanguageModel(executor, role.config.language, (), True, limits=limits, scoring=scoring)


def prefill_operations(config: LanguageConfig, tokens: int) -> int:
    """Multiplications and additions of a prompt whose last token's logits are wanted."""
    sizes = {"batch": 1, "sequence": tokens, "cache_0": tokens, "visual": 1, "logit_rows": 1}
    return graph_cost.operations(language_graph(config, UNBOUNDED), sizes)


def decode_bytes(config: LanguageConfig, tokens: int) -> int:
    """What one token reads: weights, and the caches of as many tokens, in bf16."""
    caches = 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * 2
    return (
        graph_cost.read_bytes(language_graph(config, UNBOUNDED), storage_of(Target.TENSORRT, Precision.BF16)) + caches
    )


def seconds(run: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Median of some runs, after one that does not count."""
    found = []
    for _ in range(1 + RUNS):
        before()
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


SPEED_RTX = speed_check("speed_rtx", Target.TENSORRT_RTX)
SPEED_TENSORRT = speed_check("speed_tensorrt", Target.TENSORRT)
