"""What transformers' eager model of a saved checkpoint says about guidance: full attention matrices, no caches."""

from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from engine.runtime.prompt import PromptTokens, Pruning


class Saved(Protocol):
    """A checkpoint that transformers saved; `tests.saved_internvl`, `saved_qwen2_vl`, `saved_llava_onevision`."""

    model: Any

    def inputs(self, images: list[Any], question: str) -> Any: ...


@torch.no_grad()
def importance(
    saved: Saved, images: list[Image.Image], question: str, prompt: PromptTokens, answer: list[int]
) -> np.ndarray:
    """[V]: what text rows behind the last picture, and fed tokens, pay the visual tokens in all layers and heads."""
    inputs = dict(saved.inputs(images, question))
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer[:-1]], dtype=torch.long)], dim=1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (ids == saved.model.config.image_token_id).int()
    attentions = saved.model(**inputs, output_attentions=True).attentions
    rows = np.arange(prompt.feature_rows()[-1] + 1, ids.shape[1])
    return torch.stack(attentions).double()[:, 0][:, :, rows][..., prompt.visual_positions].sum((0, 1, 2)).numpy()


@torch.no_grad()
def pruned_logits(saved: Saved, prompt: PromptTokens, answer: np.ndarray, pruning: Pruning) -> np.ndarray:
    """Of the last token, when tokens are dropped from transformers' hidden states before a layer."""
    decoder, ids = saved.model.model.language_model, np.concatenate([prompt.ids, answer])
    embeds = decoder.embed_tokens(torch.from_numpy(ids)).clone()
    if len(prompt.features):
        embeds[torch.from_numpy(prompt.feature_rows())] = torch.from_numpy(np.array(prompt.features))
    positions = prompt.positions()
    behind = prompt.next_position() + np.arange(len(answer))
    behind = np.broadcast_to(behind.reshape(-1, *(1,) * (positions.ndim - 1)), (len(answer), *positions.shape[1:]))
    turns = torch.from_numpy(np.concatenate([positions, behind]).T)
    cos, sin = decoder.rotary_emb(embeds[None], turns[:, None] if turns.dim() == 2 else turns[None])
    kept = torch.from_numpy(np.concatenate([pruning.rows, len(prompt.ids) + np.arange(len(answer))]))
    hidden = embeds[None]
    for index, layer in enumerate(decoder.layers):
        if index == pruning.prune_layer:
            hidden, cos, sin = hidden[:, kept], cos[..., kept, :], sin[..., kept, :]
        size = hidden.shape[1]
        mask = torch.full((size, size), float("-inf")).triu(1)[None, None]
        output = layer(hidden, attention_mask=mask, position_embeddings=(cos, sin))
        hidden = output[0] if isinstance(output, tuple) else output
    return saved.model.lm_head(decoder.norm(hidden))[0, -1].numpy()


def agreement(saved: Saved, prompt: PromptTokens, answer: list[int], kept: np.ndarray) -> float:
    """The probability of an answer when only these rows of its prompt are seen."""
    total = 1.0
    for index, token in enumerate(answer):
        logits = pruned_logits(saved, prompt, np.array(answer[:index], np.int64), Pruning(0, kept)).astype(np.float64)
        weights = np.exp(logits - logits.max())
        total *= weights[token] / weights.sum()
    return total


def pruned_answer(saved: Saved, prompt: PromptTokens, pruning: Pruning, length: int) -> list[int]:
    """Greedy tokens, so many."""
    said: list[int] = []
    while len(said) < length:
        said.append(int(pruned_logits(saved, prompt, np.array(said, np.int64), pruning).argmax()))
    return said


def randomise(model: torch.nn.Module) -> None:
    """Weights that keep activations near 1 and attention neither flat nor one-hot."""
    for name, parameter in model.named_parameters():
        values = torch.randn_like(parameter)
        if name.endswith(".bias"):
            values *= 0.1
        elif parameter.dim() == 1:
            values = 1 + values * 0.1
        elif "embed" not in name or "patch" in name:
            values /= parameter[0].numel() ** 0.5
        parameter.data = values
