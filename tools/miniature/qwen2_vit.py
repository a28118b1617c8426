"""Qwen2-VL's vision encoder in torch; its parameters have the published names."""

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.bindings import PATCH_COS, PATCH_SIN
from engine.model_config import QwenVitConfig
from engine.towers.qwen2_vit import host_inputs
from tools.miniature.model import rotate

EPS = 1e-6
QUICK_GELU = 1.702
BRANCH = 0.5
"""Of a branch's first output."""


class PatchEmbed(nn.Module):
    """[B,P,K] -> [B,P,C]: a convolution whose steps are as long as its kernel."""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        size = (config.frames, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.hidden_size, size, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1))


class Attention(nn.Module):
    """[B,P,C] -> [B,P,C]: every patch sees every other of its picture, and turns with its row and column."""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (rotate(part, cosine, sine) for part in (query, key))
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """[B,P,C] -> [B,P,C]"""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.fc1(x)
        return self.fc2(inner * torch.sigmoid(QUICK_GELU * inner))


class Block(nn.Module):
    """[B,P,C] -> [B,P,C]: pre-norm attention and MLP."""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.hidden_size, EPS), nn.LayerNorm(config.hidden_size, EPS)
        self.attn, self.mlp = Attention(config), MLP(config)
        with torch.no_grad():
            for last in (self.attn.proj, self.mlp.fc2):
                last.weight.mul_(BRANCH)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), cosine, sine)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """[B,P,C] -> [B,V,C of the language model]: the patches of a token side by side, and two products."""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        self.wide = config.merged**2 * config.hidden_size
        self.ln_q = nn.LayerNorm(config.hidden_size, EPS)
        self.mlp = nn.Sequential(nn.Linear(self.wide, self.wide), nn.GELU(), nn.Linear(self.wide, config.output_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).flatten(1).unflatten(1, (-1, self.wide)))


class Qwen2Vit(nn.Module):
    """[B,1,rows,columns,M*M,K] -> [B,V,C of the language model]: pictures of one size, each as it is."""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        self.patch_embed, self.merger = PatchEmbed(config), Merger(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.angles = cache(lambda rows, columns: _angles(config, rows, columns))

    def forward(self, pixels: Tensor) -> Tensor:
        dtype, (rows, columns) = self.merger.ln_q.weight.dtype, pixels.shape[2:4]
        cosine, sine = (part.to(dtype) for part in self.angles(rows, columns))
        hidden = self.patch_embed(pixels.to(dtype).flatten(1, 4))
        for block in self.blocks:
            hidden = block(hidden, cosine, sine)
        return self.merger(hidden)

    def last(self) -> nn.Linear:
        """What makes features of whatever the encoder has found."""
        last = self.merger.mlp[-1]
        assert isinstance(last, nn.Linear)
        return last


def _angles(config: QwenVitConfig, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [P,D] of every patch, as the engine computes them."""
    picture = np.zeros((1, rows, columns, config.merged**2, config.patch_values()), np.float32)
    inputs = host_inputs(config, picture)
    cosine, sine = (torch.from_numpy(inputs[name][0]).repeat(1, 2) for name in (PATCH_COS, PATCH_SIN))
    return cosine, sine
