"""Plans of single ranks, built without a GPU: their collectives, their attention, their share of the weights."""

from pathlib import Path

import pytest

from engine.bindings import language_bindings
from engine.build.builder import build_pair
from engine.build.compiler import DeclaredEngine
from engine.build.language import language_graph
from engine.build.layer_report import LayerReport
from engine.build.targets.tensorrt_rtx import TensorRtRtxCompiler
from engine.config import BuildConfig
from engine.engine_directory import read_json, read_manifest
from engine.parallel import Shard
from engine.plugins.targets.tensorrt_rtx import TENSORRT_RTX
from engine.target import Precision, Target
from tests.builder.plans import DECODE, LIMITS, PREFILL, RandomReader, num_fused, tiny
from tools.make_random_pair import LARGE, SMALL, write_checkpoint, write_tokenizer

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
ALL_REDUCE = "comm_allreduce"
"""What the compiler calls its kernel."""


def num_all_reduces(report: LayerReport, profile: int) -> int:
    return sum(layer.kind == ALL_REDUCE for layer in report.of_profile(profile))


@pytest.mark.parametrize("shard", [Shard(0, 2), Shard(3, 4)])
@pytest.mark.parametrize("scores", [False, True])
def test_a_rank_meets_the_others_after_embedding_attention_and_mlp(tmp_path: Path, shard: Shard, scores: bool) -> None:
    config = tiny(num_heads=16, num_kv_heads=8)
    settings = config, LIMITS, (1,)
    part = DeclaredEngine(
        language_graph(*settings, scores, shard, TENSORRT_RTX, "bfloat16"),
        language_bindings(*settings, TENSORRT_RTX.scoring(scores), shard, "bfloat16"),
        RandomReader(),
        calibrate=dict,
        previous=tmp_path,
    )
    TensorRtRtxCompiler(Precision.BF16, library="").write(part, tmp_path, "language", lambda fraction: None)
    report = read_json(tmp_path / "language.layers.json", LayerReport)
    for profile in (PREFILL, DECODE):
        assert num_fused(report, profile) == config.num_layers
        assert num_all_reduces(report, profile) == 1 + 2 * config.num_layers


def test_a_pair_with_a_shared_large_model(tmp_path: Path) -> None:
    language = LARGE["llm_config"] | {"num_key_value_heads": 4, "num_hidden_layers": 3}
    for name, config in (("small", SMALL), ("large", LARGE | {"llm_config": language})):
        write_checkpoint(tmp_path / name, config, seed=2)
        write_tokenizer(tmp_path / name)
    build = BuildConfig(
        tmp_path / "small",
        tmp_path / "large",
        tmp_path / "out",
        target=Target.TENSORRT_RTX,
        precision=Precision.BF16,
        max_tokens=512,
        max_batch=2,
        world_size=2,
    )
    build_pair(build)
    manifest = read_manifest(build.out)
    assert manifest.world_size == 2
    reports = [read_json(build.out / f"large/rank{rank}/language.layers.json", LayerReport) for rank in range(2)]
    assert [num_all_reduces(report, PREFILL) for report in reports] == [7, 7]
    assert reports[0].weight_bytes == reports[1].weight_bytes
    small = read_json(build.out / "small/rank0/language.layers.json", LayerReport)
    assert num_all_reduces(small, PREFILL) == 0
