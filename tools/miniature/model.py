"""The language model of the miniature models in torch; its parameters have the names of Llama and Qwen2."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model_config import LanguageConfig

WORD_STD = 0.1
"""Of the words' elements in stage 1, where visual features become about as long as what they hold."""
WORD_MARK, VISUAL_MARK = 0, 1
"""Dimensions of embeddings that are set for words and for visual tokens."""
MARK_SHARE = 0.2
"""Of the squared length of an embedding."""
SHARP, GENTLE = 1.7, 1.2
"""Gain of queries and keys in layers by turns: the first find one object, the second weigh how many there are."""
SEEKING = 12.0
"""Attention logit between a word and the marked tokens that its head looks for; above a word's likeness to itself."""
HEAD_GAIN = 0.05
"""Of the final norm: with it the first logits are no surer than chance."""


class LanguageAttention(nn.Module):
    """[B,S,C] -> [B,S,C], under a mask.

    From random weights tiny models spend most of their training on discovering that a word can look for its likes in
    the picture, so they start with it. Every other head looks for likes among visual tokens, the rest take the mean of
    the words, and all copy what they find: outputs are transposed values. Words and visual tokens are told apart by
    their marks, dimensions of the embedding of their own.
    """

    def __init__(self, config: LanguageConfig, likeness: float) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size, bias=config.qkv_bias) for _ in range(3))
        self.o_proj = nn.Linear(size, size, bias=False)
        with torch.no_grad():
            for projection in (self.q_proj, self.k_proj, self.v_proj):
                if projection.bias is not None:
                    nn.init.zeros_(projection.bias)
            nn.init.orthogonal_(self.q_proj.weight, likeness)
            nn.init.orthogonal_(self.k_proj.weight, likeness)
            nn.init.orthogonal_(self.v_proj.weight)
            self.o_proj.weight.copy_(0.7 * self.v_proj.weight.T)
            for head in range(self.num_heads):
                self._seek(head, visual=head % 2 == 0)

    def _seek(self, head: int, visual: bool) -> None:
        size = self.q_proj.in_features
        width = size // self.num_heads
        query, key = (proj.weight[head * width : (head + 1) * width] for proj in (self.q_proj, self.k_proj))
        if visual:
            key.copy_(query)
        else:
            query.mul_(0.3)
            key.mul_(0.3)
        # The slowest pair of the rotary embedding carries the mark, so that distance does not matter.
        for part in (query, key):
            part[:, [WORD_MARK, VISUAL_MARK]] = 0
            part[[width // 2 - 1, width - 1]] = 0
        strength = (SEEKING * width**0.5 / (MARK_SHARE * size)) ** 0.5
        query[width // 2 - 1, WORD_MARK] = strength
        key[width // 2 - 1, VISUAL_MARK if visual else WORD_MARK] = strength

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (rotate(part, cosine, sine) for part in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class LanguageMLP(nn.Module):
    """[B,S,C] -> [B,S,C]: gated by SiLU."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)
        with torch.no_grad():
            self.down_proj.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LanguageLayer(nn.Module):
    """A layer of the Llama layout."""

    def __init__(self, config: LanguageConfig, likeness: float = SHARP) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(size, eps), nn.RMSNorm(size, eps)
        self.self_attn, self.mlp = LanguageAttention(config, likeness), LanguageMLP(config)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, bias: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


def idle_layer(config: LanguageConfig) -> LanguageLayer:
    """A new gentle layer that passes on what it gets, until it learns."""
    layer = LanguageLayer(config, GENTLE)
    nn.init.zeros_(layer.self_attn.o_proj.weight)
    nn.init.zeros_(layer.mlp.down_proj.weight)
    return layer


class Decoder(nn.Module):
    """[B,S,C], [B,S,A], [B,1,S,S] -> [B,S,C]: final hidden states; the mask is true where a row sees a column.

    A: numbers of a position, each of which turns some of the frequencies.

    sharp: all layers are, of a decoder that is to become deeper.
    """

    def __init__(self, config: LanguageConfig, sharp: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        likenesses = (SHARP, SHARP if sharp else GENTLE)
        self.layers = nn.ModuleList(LanguageLayer(config, likenesses[layer % 2]) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(size, config.norm_eps)
        nn.init.constant_(self.norm.weight, HEAD_GAIN)
        half, rope = config.head_dim // 2, config.rope
        self.frequencies = rope.theta ** -(torch.arange(half, dtype=torch.float32) / half)
        self.axes = torch.from_numpy(np.repeat(np.arange(rope.num_axes()), rope.sections or half))

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        angles = (positions[:, None, :, self.axes] * self.frequencies).repeat(1, 1, 1, 2)
        cosine, sine = angles.cos().to(embeds.dtype), angles.sin().to(embeds.dtype)
        bias = torch.zeros(mask.shape, dtype=embeds.dtype).masked_fill_(~mask, float("-inf"))
        for layer in self.layers:
            embeds = layer(embeds, cosine, sine, bias)
        return self.norm(embeds)


class LanguageModel(nn.Module):
    """Llama, or Qwen2, with a tied head."""

    def __init__(self, config: LanguageConfig, sharp: bool = False) -> None:
        super().__init__()
        self.model = Decoder(config, sharp)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        return self.model(embeds, positions, mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """[...,C] -> [...,vocabulary]"""
        return F.linear(hidden, self.model.embed_tokens.weight)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """[B,H,S,D] -> [B,H,S,D]: rotary embedding of half-split pairs."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine
