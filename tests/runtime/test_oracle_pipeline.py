"""The whole of SGL once more in transformers, without caches or batches, against the pipeline.

Vision through InternVLModel, language through eager models; importance from full attention matrices.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from safetensors.torch import load_file
from transformers import InternVLConfig, InternVLModel, InternVLVisionConfig, LlamaConfig

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, ScoreRows
from engine.families import Turn
from engine.runtime.guidance import keep_rows
from engine.runtime.model import VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Pruning
from engine.runtime.speaker import Scored
from tests.oracle import embed, load_oracle, pruned_logits
from tests.tolerance import TOLERANCE

QUESTION = "How many red squares are there?"
NEW_TOKENS = 6


class Oracle:
    """transformers' twin of one checkpoint."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.language: Any = load_oracle(directory, self.config["llm_config"])
        tensors: dict[str, torch.Tensor] = {}
        for file in directory.glob("*.safetensors"):
            tensors |= load_file(file)
        self.vision = load_vision(self.config, {name: tensor.float() for name, tensor in tensors.items()})

    @torch.no_grad()
    def prompt(self, model: VisionLanguageModel, image: Image.Image) -> PromptTokens:
        """The engine's own tiles and token ids, and transformers' features."""
        seen = model.look([image], QUESTION, NEW_TOKENS)
        pixels = torch.from_numpy(seen.tiles[0].pixel_values)
        features = self.vision.get_image_features(
            pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        )
        features = getattr(features, "pooler_output", features)
        return seen.prompt([features.reshape(-1, features.shape[-1]).numpy()], features.shape[-1])

    def generate(self, prompt: PromptTokens, pruning: Pruning, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Greedy tokens and their probabilities."""
        tokens: list[int] = []
        probabilities: list[float] = []
        while len(tokens) < NEW_TOKENS and stop not in tokens:
            logits = pruned_logits(self.language, prompt, np.array(tokens, np.int64), pruning).astype(np.float64)
            tokens.append(int(logits.argmax()))
            weights = np.exp(logits - logits.max())
            probabilities.append(float(weights.max() / weights.sum()))
        return np.array(tokens), np.array(probabilities)

    @torch.no_grad()
    def importance(self, prompt: PromptTokens, answer: np.ndarray) -> np.ndarray:
        """[V]: eqs. 3-5, all text rows and the generated tokens that are fed back."""
        ids = np.concatenate([prompt.ids, answer[:-1]])
        embeds = embed(self.language, ids, prompt.visual_positions, prompt.features)
        attentions = self.language(inputs_embeds=embeds, output_attentions=True).attentions
        rows = np.setdiff1d(np.arange(len(ids)), prompt.visual_positions)
        total = torch.stack(attentions).double()[:, 0, :, rows][..., prompt.visual_positions]
        return total.sum((0, 1, 2)).numpy()

    @torch.no_grad()
    def value_norms(self, prompt: PromptTokens) -> np.ndarray:
        """[V]: of the values that transformers caches, a mean over layers and heads."""
        embeds = embed(self.language, prompt.ids, prompt.visual_positions, prompt.features)
        cache = self.language(inputs_embeds=embeds, use_cache=True).past_key_values
        values = torch.stack([layer.values for layer in cache.layers])[:, 0, :, prompt.visual_positions]
        return values.double().norm(dim=-1).mean((0, 1)).numpy()


def load_vision(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    """InternVLModel's vision tower and projector with a checkpoint's weights."""
    published = config["vision_config"]
    vision = InternVLVisionConfig(
        hidden_size=published["hidden_size"],
        num_hidden_layers=published["num_hidden_layers"],
        num_attention_heads=published["num_attention_heads"],
        attention_bias=published["qkv_bias"],
        use_qk_norm=published["qk_normalization"],
        intermediate_size=published["intermediate_size"],
        norm_type=published["norm_type"],
        layer_norm_eps=published["layer_norm_eps"],
        image_size=published["image_size"],
        patch_size=published["patch_size"],
    )
    width = config["llm_config"]["hidden_size"]
    text = LlamaConfig(hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    model = InternVLModel(InternVLConfig(vision_config=vision, text_config=text, downsample_ratio=0.5)).float().eval()
    renamed = {
        "vision_model.embeddings.class_embedding": "vision_tower.embeddings.cls_token",
        "vision_model.embeddings.position_embedding": "vision_tower.embeddings.position_embeddings",
        "vision_model.embeddings.patch_embedding": "vision_tower.embeddings.patch_embeddings.projection",
        "vision_model.encoder.layers": "vision_tower.encoder.layer",
        "attn.proj": "attention.projection_layer",
        "attn.q_norm": "attention.q_norm",
        "attn.k_norm": "attention.k_norm",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "ls1": "lambda_1",
        "ls2": "lambda_2",
        "mlp1.0": "multi_modal_projector.layer_norm",
        "mlp1.1": "multi_modal_projector.linear_1",
        "mlp1.3": "multi_modal_projector.linear_2",
    }
    state: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("language_model."):
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        if "attn.qkv" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"attention.{part}_proj")] = rows
        else:
            state[name] = tensor
    left_out, unknown = model.load_state_dict(state, strict=False)
    assert all(name.startswith("language_model.") for name in left_out)
    assert not unknown
    return model


@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_the_pipeline_is_sgl(pipeline: SglPipeline, pair: Path, picture: Image.Image, ratio: float) -> None:
    answer = pipeline.answer(
        picture,
        QUESTION,
        guidance=GuidanceConfig(retention_ratio=ratio),
        exit=ExitConfig(exit_threshold=2.0),
        sampling=SamplingConfig(max_new_tokens=NEW_TOKENS),
    )
    decision, importance = answer.decision, answer.importance
    assert decision is not None
    assert importance is not None
    assert answer.kept is not None
    assert answer.guidance is not None
    assert answer.guidance.prune_layer == int(10 * ratio)

    small = Oracle(pair / "small")
    stop = pipeline.small.tokenizer.token_id("<|im_end|>")
    prompt = small.prompt(pipeline.small, picture)
    everything = Pruning(0, np.arange(len(prompt.ids)))
    tokens, probabilities = small.generate(prompt, everything, stop)
    assert pipeline.small.tokenizer.decode(tokens.tolist()) == answer.small_text
    assert decision.confidence == pytest.approx(np.exp(np.log(probabilities).mean()), rel=1e-4)
    expected = small.importance(prompt, tokens)
    assert_allclose(importance, expected, rtol=1e-4)
    count = len(expected)

    few = np.sort(np.argsort(-expected, kind="stable")[: int(count * 0.05)])
    pruned = Pruning(0, keep_rows(prompt.visual_positions, few, len(prompt.ids)))
    agreement = 1.0
    for index, token in enumerate(tokens):
        logits = pruned_logits(small.language, prompt, tokens[:index], pruned).astype(np.float64)
        weights = np.exp(logits - logits.max())
        agreement *= weights[token] / weights.sum()
    assert decision.consistency == pytest.approx(agreement, rel=1e-3)
    assert decision.value == pytest.approx((decision.confidence + agreement) / 2, rel=1e-3)

    kept = np.sort(np.argsort(-expected, kind="stable")[: int(count * ratio)])
    assert_array_equal(answer.kept, kept)
    large = Oracle(pair / "large")
    prompt = large.prompt(pipeline.large, picture)
    rows = keep_rows(prompt.visual_positions, kept, len(prompt.ids))
    stop = pipeline.large.tokenizer.token_id("<|im_end|>")
    tokens, probabilities = large.generate(prompt, Pruning(answer.guidance.prune_layer, rows), stop)
    assert answer.token_ids == tuple(tokens)
    assert_allclose(answer.probabilities, probabilities, **TOLERANCE["fp32"])


def test_importance_by_the_length_of_values(pipeline: SglPipeline, pair: Path, picture: Image.Image) -> None:
    guidance, sampling = GuidanceConfig(retention_ratio=0.1, value_norm=True), SamplingConfig(max_new_tokens=NEW_TOKENS)
    plain = replace(guidance, value_norm=False)
    weighed, received = (
        pipeline.answer(picture, QUESTION, guidance=one, exit=ExitConfig(enabled=False), sampling=sampling).importance
        for one in (guidance, plain)
    )
    assert weighed is not None and received is not None
    small = Oracle(pair / "small")
    norms = small.value_norms(small.prompt(pipeline.small, picture))
    assert norms.std() > 0
    assert_allclose(weighed, received * norms, rtol=1e-4)


@pytest.mark.parametrize("history", [(), (Turn("Before?", "Yes."),)])
def test_the_rows_of_a_question(pipeline: SglPipeline, picture: Image.Image, history: tuple[Turn, ...]) -> None:
    """All of its tokens and little else, wherever the pictures stand."""
    for text in (QUESTION, f"Of <image>, {QUESTION}"):
        seen = pipeline.small.look((picture,), text, NEW_TOKENS, history)
        said = pipeline.small.tokenizer.decode(seen.encoded.ids[seen.encoded.question].tolist())
        assert said.endswith(QUESTION) and len(said) < len(QUESTION) + 8
        prompt = seen.prompt([], 1)
        scored = Scored.of(prompt, ScoreRows.QUESTION)
        assert not scored.generated
        behind = seen.encoded.question[seen.encoded.question > seen.encoded.visual_positions[-1]]
        assert scored.prompt.tolist() == [*behind, len(prompt.ids) - 1]
