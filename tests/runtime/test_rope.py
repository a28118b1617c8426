"""Rotary angles against transformers' rotary embeddings."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from engine.model_config import RopeConfig, RopeScaling
from engine.runtime.rope import RopeTable

THETA = 10000.0
MAX_POSITIONS = 64
ORIGINAL = 16


def llama_config(head_dim: int, max_positions: int = MAX_POSITIONS, **parameters: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_theta": THETA, **parameters},
    )


def phi3_config(head_dim: int, rope: RopeConfig) -> Phi3Config:
    assert rope.original_max_positions
    return Phi3Config(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=rope.max_positions,
        original_max_position_embeddings=rope.original_max_positions,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": rope.theta,
            "short_factor": list(rope.short_factor),
            "long_factor": list(rope.long_factor),
            "original_max_position_embeddings": rope.original_max_positions,
        },
    )


def long_rope(head_dim: int, max_positions: int = MAX_POSITIONS) -> RopeConfig:
    half = head_dim // 2
    return RopeConfig(
        THETA,
        max_positions,
        RopeScaling.LONG,
        original_max_positions=ORIGINAL,
        short_factor=tuple(np.linspace(1, 1.5, half).tolist()),
        long_factor=tuple(np.linspace(1.1, 40, half).tolist()),
    )


def assert_same(rope: RopeConfig, head_dim: int, positions: np.ndarray, oracle: torch.nn.Module) -> None:
    length = int(positions.max()) + 1
    cos, sin = RopeTable(rope, head_dim).cos_sin(positions, np.full_like(positions, length))
    expected = oracle(torch.zeros(1), torch.from_numpy(positions))
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (*positions.shape, head_dim // 2)
    # the oracle's angles are float32, so its error grows with the position
    tolerance = 1e-6 + length * 3e-7
    for ours, theirs in zip((cos, sin), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy()[..., : head_dim // 2], rtol=0, atol=tolerance)


@pytest.mark.parametrize("head_dim", [4, 6, 64, 96, 128])
@pytest.mark.parametrize("length", [1, 7, MAX_POSITIONS, MAX_POSITIONS + 1, 5 * MAX_POSITIONS])
@pytest.mark.parametrize(
    ("rope", "parameters"),
    [
        (RopeConfig(THETA, MAX_POSITIONS), {"rope_type": "default"}),
        (RopeConfig(THETA, MAX_POSITIONS, RopeScaling.LINEAR, factor=2.5), {"rope_type": "linear", "factor": 2.5}),
        (
            RopeConfig(THETA, MAX_POSITIONS, RopeScaling.DYNAMIC_NTK, factor=2.0),
            {"rope_type": "dynamic", "factor": 2.0},
        ),
        (
            RopeConfig(THETA, MAX_POSITIONS, RopeScaling.LLAMA3, 8.0, ORIGINAL, low_freq_factor=1, high_freq_factor=4),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": ORIGINAL,
            },
        ),
    ],
    ids=["none", "linear", "dynamic_ntk", "llama3"],
)
def test_llama_layouts(rope: RopeConfig, parameters: dict[str, Any], length: int, head_dim: int) -> None:
    positions = np.stack([np.arange(length), np.arange(length)[::-1]])
    assert_same(rope, head_dim, positions, LlamaRotaryEmbedding(llama_config(head_dim, **parameters)))


@pytest.mark.parametrize("head_dim", [4, 6, 96])
@pytest.mark.parametrize("length", [1, ORIGINAL, ORIGINAL + 1, 3 * MAX_POSITIONS])
@pytest.mark.parametrize("max_positions", [ORIGINAL, MAX_POSITIONS])
def test_phi3_long(max_positions: int, length: int, head_dim: int) -> None:
    rope = long_rope(head_dim, max_positions)
    assert_same(rope, head_dim, np.arange(length)[None], Phi3RotaryEmbedding(phi3_config(head_dim, rope)))


@pytest.mark.parametrize("length", [4096, 32768, 40000])
def test_internlm2_at_its_published_size(length: int) -> None:
    rope = RopeConfig(1e6, 32768, RopeScaling.DYNAMIC_NTK, factor=2.0)
    parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](llama_config(128, 32768, **parameters), "cpu", seq_len=length)
    frequencies = RopeTable(rope, 128).frequencies(np.array([[length]]))
    np.testing.assert_allclose(frequencies[0, 0], expected.numpy(), rtol=1e-6)


def test_far_positions_keep_their_precision() -> None:
    """The turn of the first frequency is 1 radian a position, whatever the position."""
    cos, sin = RopeTable(RopeConfig(THETA, 2**20), 8).cos_sin(np.array([[1_000_003]]), np.array([[1_000_004]]))
    np.testing.assert_allclose(np.arctan2(sin, cos)[0, 0, 0], np.angle(np.exp(1j * 1_000_003)), atol=1e-6)


def test_gapped_positions_are_those_of_the_unpruned_prompt() -> None:
    table = RopeTable(long_rope(6), 6)
    kept = np.array([0, 3, 4, 11, 29])
    every = table.cos_sin(np.arange(30)[None], np.full((1, 30), 30))
    for some, all_rows in zip(table.cos_sin(kept[None], np.full((1, 5), 30)), every, strict=True):
        np.testing.assert_array_equal(some, all_rows[:, kept])


@pytest.mark.parametrize("scaling", [RopeScaling.DYNAMIC_NTK, RopeScaling.LONG])
def test_a_request_is_rotated_as_if_it_were_alone(scaling: RopeScaling) -> None:
    table = RopeTable(replace(long_rope(8), scaling=scaling, factor=2.0), 8)
    lengths = np.array([5, MAX_POSITIONS * 2, ORIGINAL + 1])
    positions = lengths[:, None] - 1
    together = table.cos_sin(positions, lengths[:, None])
    for row in range(len(lengths)):
        alone = table.cos_sin(positions[row : row + 1], lengths[row : row + 1, None])
        for ours, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(ours[row : row + 1], expected)
