"""Planned activations against the scratch memory that TensorRT-RTX settles on when it compiles. No GPU is needed."""

from pathlib import Path

import pytest

from engine.build.language import language_graph
from engine.config import Precision, Target
from engine.dims import Limits, Phase
from engine.model_config import LanguageConfig, RopeConfig
from engine.parallel import Mapping
from engine.plugins.lowering import TENSORRT
from tests.builder.plans import LIMITS, PREFILL, compile_language
from tools.planning.graph_cost import peak_activation_bytes
from tools.planning.storage import storage_of

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
WIDE = LanguageConfig(896, 2, 14, 2, 64, 4864, 4096, 1e-6, RopeConfig(1e6, 32768), qkv_bias=True)
"""Two layers of Qwen2-0.5B; scratch memory does not grow with depth."""
FACTOR = 1.25
"""The compiler shares buffers better than a list of nodes tells, and needs some inside kernels."""


@pytest.mark.parametrize("scores", [False, True])
def test_activations_are_about_the_scratch_memory_of_a_plan(tmp_path: Path, scores: bool) -> None:
    report = compile_language(tmp_path, WIDE, scores=scores)
    tokens, rows = LIMITS.max_tokens, LIMITS.score_rows().max
    sizes = {"batch": LIMITS.batch().during(Phase.PREFILL).max, "sequence": tokens, "cache_0": tokens, "visual": tokens}
    sizes |= {"visual_columns": tokens, "score_rows": rows, "logit_rows": LIMITS.logit_rows().max}
    graph = language_graph(WIDE, Limits(1, 1, 1), scores=scores, mapping=Mapping(), lowering=TENSORRT)
    planned = peak_activation_bytes(graph, sizes, storage_of(Target.TENSORRT_RTX, Precision.BF16))
    assert planned / FACTOR < report.scratch_bytes[PREFILL] < planned * FACTOR
