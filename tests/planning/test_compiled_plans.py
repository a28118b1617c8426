"""Planned activations against the scratch memory that TensorRT-RTX settles on when it compiles. No GPU is needed."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.build.language import language_graph
from engine.build.scoring import scoring_graph
from engine.dims import SCORED_AT_ONCE, Limits, Phase
from engine.model_config import LanguageConfig, RopeConfig
from engine.planning.graph_cost import peak_activation_bytes
from engine.planning.storage import storage_of
from engine.target import Precision, Target
from tests.builder.plans import LIMITS, PREFILL, compile_language, compile_scoring

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
WIDE = LanguageConfig(896, 2, 14, 2, 64, 4864, 4096, 1e-6, RopeConfig(1e6, 32768), qkv_bias=True)
"""Two layers of Qwen2-0.5B; scratch memory does not grow with depth."""
FACTOR = 1.25
"""The compiler shares buffers better than a list of nodes tells, and needs some inside kernels."""


def test_activations_are_about_the_scratch_memory_of_a_plan(tmp_path: Path) -> None:
    report = compile_language(tmp_path, WIDE)
    tokens = LIMITS.max_tokens
    sizes = {"batch": LIMITS.batch().during(Phase.PREFILL).max, "sequence": tokens, "cache_0": tokens, "visual": tokens}
    sizes |= {"score_rows": LIMITS.score_rows().max, "logit_rows": LIMITS.logit_rows().max}
    graph = language_graph(WIDE, Limits(1, 1, 1), scores=True)
    planned = peak_activation_bytes(graph, sizes, storage_of(Target.TENSORRT_RTX, Precision.BF16))
    assert planned / FACTOR < report.scratch_bytes[PREFILL] < planned * FACTOR


def test_activations_of_scores(tmp_path: Path) -> None:
    limits = replace(LIMITS, max_tokens=8192)  # many enough to be more than the product's own workspace
    report = compile_scoring(tmp_path, WIDE, limits)
    sizes = {"batch": 1, "visual_columns": limits.max_tokens, "cache": limits.max_tokens, "scored_rows": SCORED_AT_ONCE}
    planned = peak_activation_bytes(scoring_graph(WIDE, limits), sizes, storage_of(Target.TENSORRT_RTX, Precision.BF16))
    assert planned / FACTOR < report.scratch_bytes[PREFILL] < planned * FACTOR
