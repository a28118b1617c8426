"""The miniature models in torch; their parameters have the published names (InternViT, `mlp1`, Llama)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class VisionAttention(nn.Module):
    """[N,S,C] -> [N,S,C]: every token sees every other of its tile."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.num_heads = config["num_attention_heads"]
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv.unbind()).transpose(1, 2).flatten(-2))


class VisionMLP(nn.Module):
    """[N,S,C] -> [N,S,C]"""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, inner = config["hidden_size"], config["intermediate_size"]
        self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    """[N,S,C] -> [N,S,C]: pre-norm attention and MLP, each branch scaled channel by channel."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, eps = config["hidden_size"], config["layer_norm_eps"]
        self.norm1, self.norm2 = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
        self.attn, self.mlp = VisionAttention(config), VisionMLP(config)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((size,), 0.5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class VisionEmbeddings(nn.Module):
    """[N,3,S,S] -> [N,1+P*P,C]: class token and patches, with their positions added."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, patch = config["hidden_size"], config["patch_size"]
        positions = (config["image_size"] // patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(1, 1, size) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1, positions, size) * 0.2)
        self.patch_embedding = nn.Conv2d(3, size, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), -1, -1), patches], 1)
        return tokens + self.position_embedding


class VisionEncoder(nn.Module):
    """[N,S,C] -> [N,S,C]"""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(VisionLayer(config) for _ in range(config["num_hidden_layers"])))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class VisionModel(nn.Module):
    """[N,3,S,S] -> [N,V,C of the language model]: InternViT, pixel shuffle and projector."""

    def __init__(self, config: Mapping[str, Any], output_size: int) -> None:
        super().__init__()
        wide = 4 * config["hidden_size"]
        self.grid = config["image_size"] // config["patch_size"] // 2
        self.embeddings, self.encoder = VisionEmbeddings(config), VisionEncoder(config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, output_size), nn.GELU(), nn.Linear(output_size, output_size)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.encoder(self.embeddings(pixels))
        squares = hidden[:, 1:].unflatten(1, (self.grid, 2, self.grid, 2)).transpose(2, 3)
        return self.mlp1(squares.flatten(3).flatten(1, 2))


class LanguageAttention(nn.Module):
    """[B,S,C] -> [B,S,C], under a mask.

    From random weights tiny models spend most of their training on discovering that a word can look for its likes in
    the picture, so they start with it. Every other head looks for likes among visual tokens, the rest take the mean of
    the words, and all copy what they find: outputs are transposed values. Words and visual tokens are told apart by
    their marks, dimensions of the embedding of their own.
    """

    def __init__(self, config: Mapping[str, Any], likeness: float) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.num_heads = config["num_attention_heads"]
        self.q_proj, self.k_proj = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        self.v_proj, self.o_proj = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        with torch.no_grad():
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
        query, key = (_rotate(part, cosine, sine) for part in (query, key))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.o_proj(attended.transpose(1, 2).flatten(-2))


class LanguageMLP(nn.Module):
    """[B,S,C] -> [B,S,C]: gated by SiLU."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        size, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(size, inner, bias=False), nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)
        with torch.no_grad():
            self.down_proj.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LanguageLayer(nn.Module):
    """A layer of the Llama layout."""

    def __init__(self, config: Mapping[str, Any], likeness: float = SHARP) -> None:
        super().__init__()
        size, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(size, eps), nn.RMSNorm(size, eps)
        self.self_attn, self.mlp = LanguageAttention(config, likeness), LanguageMLP(config)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, bias: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


def idle_layer(config: Mapping[str, Any]) -> LanguageLayer:
    """A new gentle layer that passes on what it gets, until it learns."""
    layer = LanguageLayer(config, GENTLE)
    nn.init.zeros_(layer.self_attn.o_proj.weight)
    nn.init.zeros_(layer.mlp.down_proj.weight)
    return layer


class Decoder(nn.Module):
    """[B,S,C], [B,S], [B,1,S,S] -> [B,S,C]: final hidden states; the mask is true where a row sees a column.

    sharp: all layers are, of a decoder that is to become deeper.
    """

    def __init__(self, config: Mapping[str, Any], sharp: bool) -> None:
        super().__init__()
        size = config["hidden_size"]
        self.embed_tokens = nn.Embedding(config["vocab_size"], size)
        likenesses = (SHARP, SHARP if sharp else GENTLE)
        self.layers = nn.ModuleList(
            LanguageLayer(config, likenesses[layer % 2]) for layer in range(config["num_hidden_layers"])
        )
        self.norm = nn.RMSNorm(size, config["rms_norm_eps"])
        nn.init.constant_(self.norm.weight, HEAD_GAIN)
        head_dim = size // config["num_attention_heads"]
        self.frequencies = config["rope_theta"] ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        angles = (positions[:, None, :, None] * self.frequencies).repeat(1, 1, 1, 2)
        cosine, sine = angles.cos().to(embeds.dtype), angles.sin().to(embeds.dtype)
        bias = torch.zeros(mask.shape, dtype=embeds.dtype).masked_fill_(~mask, float("-inf"))
        for layer in self.layers:
            embeds = layer(embeds, cosine, sine, bias)
        return self.norm(embeds)


class LanguageModel(nn.Module):
    """Llama with a tied head."""

    def __init__(self, config: Mapping[str, Any], sharp: bool = False) -> None:
        super().__init__()
        self.model = Decoder(config, sharp)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        return self.model(embeds, positions, mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """[...,C] -> [...,vocabulary]"""
        return F.linear(hidden, self.model.embed_tokens.weight)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """[B,H,S,D] -> [B,H,S,D]: rotary embedding of half-split pairs."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine
