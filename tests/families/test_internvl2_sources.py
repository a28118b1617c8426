"""Weight names and rows against the transformers classes and against the tensors of published checkpoints."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from engine.families import Source, internvl2
from engine.model_config import ModelConfig
from tests.families.fixtures import SIZES, published, read_size
from tools.make_random_pair import SMALL
from tools.random_checkpoint import tensor_shapes

PARAMETERS = {"1b": 0.938e9, "2b": 2.21e9, "4b": 4.15e9, "8b": 8.08e9, "26b": 25.5e9, "40b": 40.1e9, "76b": 76.3e9}
"""As stated on the published model cards."""
INTERNLM2_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def gather(tensors: dict[str, torch.Tensor], sources: dict[str, Source]) -> dict[str, torch.Tensor]:
    """Our parameters, read from a checkpoint's tensors."""
    return {
        name: tensors[source.tensor]
        if source.rows is None
        else torch.cat([tensors[source.tensor][first:stop] for first, stop in source.rows])
        for name, source in sources.items()
    }


def small_config(architecture: str, **changes: object) -> dict:
    language = dict(SMALL["llm_config"], architectures=[architecture], rope_scaling=None, **changes)
    return SMALL | {"llm_config": language}


def llama_for(config: ModelConfig) -> LlamaForCausalLM:
    language = config.language
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=language.hidden_size,
            intermediate_size=language.intermediate_size,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_kv_heads,
            vocab_size=language.vocab_size,
            rms_norm_eps=language.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope.theta},
            attention_bias=False,
        )
    ).eval()


@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_count(size: str) -> None:
    count = sum(torch.Size(shape).numel() for shape in tensor_shapes(published(size)).values())
    assert count == pytest.approx(PARAMETERS[size], rel=5e-3)


@pytest.mark.parametrize("size", SIZES)
def test_every_row_of_every_tensor_is_read_once(size: str) -> None:
    config = read_size(size)
    shapes = tensor_shapes(published(size))
    sources = internvl2.language_sources(config, shapes) | internvl2.vision_sources(config, shapes)
    rows: dict[str, list[tuple[int, int]]] = {}
    for source in sources.values():
        rows.setdefault(source.tensor, []).extend(source.rows or ((0, shapes[source.tensor][0]),))
    assert rows.keys() == shapes.keys()
    for tensor, ranges in rows.items():
        stops = [0]
        for first, stop in sorted(ranges):
            assert first == stops[-1]
            stops.append(stop)
        assert stops[-1] == shapes[tensor][0]


def test_llama_names(tmp_path: Path) -> None:
    published_config = small_config("LlamaForCausalLM")
    config = internvl2.read_config(tmp_path, published_config)
    sources = internvl2.language_sources(config, tensor_shapes(published_config))
    expected = llama_for(config).state_dict()
    assert sources == {name: Source(f"language_model.{name}") for name in expected}


def test_tied_head_reads_the_embedding(tmp_path: Path) -> None:
    for architecture in ("InternLM2ForCausalLM", "Qwen2ForCausalLM"):
        published_config = small_config(architecture, tie_word_embeddings=True)
        config = internvl2.read_config(tmp_path, published_config)
        sources = internvl2.language_sources(config, tensor_shapes(published_config))
        assert sources["lm_head.weight"] == sources["model.embed_tokens.weight"]
        assert {source.tensor for source in sources.values()} < tensor_shapes(published_config).keys()


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (4, 1), (4, 4), (6, 3)])
def test_internlm2_weights_are_those_of_a_llama(heads: int, kv_heads: int, tmp_path: Path) -> None:
    published_config = small_config(
        "InternLM2ForCausalLM", hidden_size=16 * heads, num_attention_heads=heads, num_key_value_heads=kv_heads
    )
    config = internvl2.read_config(tmp_path, published_config)
    expected = llama_for(config).state_dict()
    tensors = {
        "model.tok_embeddings.weight": expected["model.embed_tokens.weight"],
        "model.norm.weight": expected["model.norm.weight"],
        "output.weight": expected["lm_head.weight"],
    }
    for index in range(config.language.num_layers):
        prefix = f"model.layers.{index}"
        parts = [expected[f"{prefix}.self_attn.{part}_proj.weight"] for part in "qkv"]
        # InternLM2's rearrange: "(kv_head group head_dim)", a group being the queries, the key, the value
        wqkv = torch.cat([part.view(kv_heads, -1, 16, 16 * heads) for part in parts], dim=1)
        tensors[f"{prefix}.attention.wqkv.weight"] = wqkv.reshape(-1, 16 * heads)
        for theirs, ours in INTERNLM2_NAMES.items():
            tensors[f"{prefix}.{theirs}.weight"] = expected[f"{prefix}.{ours}.weight"]
    tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    found = gather(tensors, internvl2.language_sources(config, tensor_shapes(published_config)))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_phi3_weights_in_a_llama_give_the_logits_of_phi3(kv_heads: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    published_config = small_config("Phi3ForCausalLM", num_key_value_heads=kv_heads)
    config = internvl2.read_config(tmp_path, published_config)
    fields = {name: value for name, value in published_config["llm_config"].items() if not name.startswith("rope")}
    theta = published_config["llm_config"]["rope_theta"]
    rope = {"rope_type": "default", "rope_theta": theta}
    torch.manual_seed(1)
    phi3 = Phi3ForCausalLM(Phi3Config(**fields, rope_parameters=rope, pad_token_id=0)).eval()
    tensors = {f"language_model.{name}": tensor for name, tensor in phi3.state_dict().items()}
    llama = llama_for(config)
    llama.load_state_dict(
        gather(tensors, internvl2.language_sources(config, tensor_shapes(published_config))), strict=True
    )
    ids = torch.randint(0, config.language.vocab_size, (2, 13))
    torch.testing.assert_close(llama(ids).logits, phi3(ids).logits, rtol=1e-5, atol=1e-5)
