"""Plans of single language engines: how weights are stored, how much memory is planned, which attention is fused."""

from pathlib import Path

import pytest

from engine.build.checkpoint import Checkpoint
from engine.build.weights import WeightReader
from engine.families import family_of
from engine.target import Precision
from tests.builder.plans import DECODE, PREFILL, PRUNE_LAYERS, compile_language, num_fused, tiny, users
from tools.make_random_pair import SMALL
from tools.random_checkpoint import write_checkpoint

pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")

WEIGHT_BITS = {Precision.BF16: 16, Precision.FP16: 16, Precision.INT8: 8, Precision.INT4: 4, Precision.FP8: 8}


@pytest.mark.parametrize("precision", WEIGHT_BITS)
def test_every_precision(tmp_path: Path, precision: Precision) -> None:
    """From a checkpoint: matrices are stored once, in few bits, and turned back inside the kernel that multiplies."""
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out"
    write_checkpoint(checkpoint, SMALL, seed=1)
    out.mkdir()
    family, published = family_of(checkpoint)
    config = family.read_config(checkpoint, published)
    tensors = Checkpoint(checkpoint)
    reader = WeightReader(tensors, family.language_sources(config, tensors.names()))
    report = compile_language(out, config.language, precision, prune_layers=PRUNE_LAYERS, reader=reader)
    layers, size, vocabulary = config.language.num_layers, config.language.hidden_size, config.language.vocab_size
    matrices = layers * (size * size * 2 + size * 64 + size * 160 * 3)
    head = vocabulary * size
    bits = WEIGHT_BITS[precision]
    expected = (matrices * bits + head * max(bits, 8)) // 8 + (head + size * (2 * layers + 1)) * 2
    scales = matrices // 32 * 2 if bits == 4 else 0  # at most: blocks are of 32 or more
    assert expected <= report.weight_bytes <= 1.05 * expected + scales
    for profile in (PREFILL, DECODE):
        assert num_fused(report, profile) == layers
        dequantized = users(report, profile, ".weight.dequantize")
        assert len(dequantized) == (4 * layers + 1 if bits < 16 else 0)
        assert all(any("MatMul" in node for node in nodes) for nodes in dequantized)


def test_a_vocabulary_of_odd_size_costs_nothing(tmp_path: Path) -> None:
    """The head in few bits is turned back inside its product then, too, and takes no memory of its own."""
    scratch = []
    for vocabulary in (4096, 4095):
        directory = tmp_path / str(vocabulary)
        directory.mkdir()
        config = tiny(num_layers=1, hidden_size=512, vocab_size=vocabulary)
        report = compile_language(directory, config, Precision.INT8, scores=False)
        for profile in (PREFILL, DECODE):
            (nodes,) = users(report, profile, "lm_head.weight.dequantize")
            assert any("MatMul" in node for node in nodes)
        scratch.append(report.scratch_bytes[DECODE])
    assert scratch[1] < 1.02 * scratch[0]


def test_scratch_memory_does_not_grow_with_depth(tmp_path: Path) -> None:
    """Of layers of their own size, more plan no more memory."""
    scratch = []
    for layers in (2, 5):
        directory = tmp_path / str(layers)
        directory.mkdir()
        scratch.append(compile_language(directory, tiny(num_layers=layers)).scratch_bytes[PREFILL])
    assert scratch[1] < 1.02 * scratch[0]


def test_scores_cost_a_language_plan_no_kernel(tmp_path: Path) -> None:
    """The kernel that rotates the queries of a layer also writes those of the scored rows."""
    kernels = []
    for scores in (False, True):
        directory = tmp_path / str(scores)
        directory.mkdir()
        report = compile_language(directory, tiny(num_layers=3), scores=scores)
        kernels.append([len(report.of_profile(profile)) for profile in (PREFILL, DECODE)])
    assert kernels[0] == kernels[1]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 80), (32, 32, 96), (8, 1, 128), (14, 2, 64)])
def test_attention_of_published_head_sizes_is_fused(tmp_path: Path, heads: int, kv_heads: int, head_dim: int) -> None:
    config = tiny(num_layers=1, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    report = compile_language(tmp_path, config)
    assert [num_fused(report, profile) for profile in (PREFILL, DECODE)] == [1, 1]


def test_norms_of_queries_and_keys_leave_attention_fused(tmp_path: Path) -> None:
    report = compile_language(tmp_path, tiny(num_layers=2, head_dim=128, qk_norm=True))
    assert [num_fused(report, profile) for profile in (PREFILL, DECODE)] == [2, 2]
