"""InternViT in torch; its parameters have the published names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model_config import InternVitConfig


class Attention(nn.Module):
    """[N,S,C] -> [N,S,C]: every token sees every other of its tile."""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(*qkv.unbind()).transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """[N,S,C] -> [N,S,C]"""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    """[N,S,C] -> [N,S,C]: pre-norm attention and MLP, each branch scaled channel by channel."""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
        self.attn, self.mlp = Attention(config), MLP(config)
        self.ls1, self.ls2 = (nn.Parameter(torch.full((size,), 0.5)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1 * self.attn(self.norm1(x))
        return x + self.ls2 * self.mlp(self.norm2(x))


class Embeddings(nn.Module):
    """[N,3,S,S] -> [N,1+P*P,C]: class token and patches, with their positions added."""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        positions = (config.image_size // patch) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(1, 1, size) * 0.02)
        self.position_embedding = nn.Parameter(torch.randn(1, positions, size) * 0.2)
        self.patch_embedding = nn.Conv2d(3, size, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), -1, -1), patches], 1)
        return tokens + self.position_embedding


class Encoder(nn.Module):
    """[N,S,C] -> [N,S,C]"""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(Layer(config) for _ in range(config.num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class InternVit(nn.Module):
    """[B,N,3,S,S] -> [B,V,C of the language model]: the encoder over tiles, pixel shuffle and projector."""

    def __init__(self, config: InternVitConfig) -> None:
        super().__init__()
        wide, output_size = 4 * config.hidden_size, config.output_size
        self.grid = config.image_size // config.patch_size // 2
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, output_size), nn.GELU(), nn.Linear(output_size, output_size)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        tiles = pixels.flatten(0, 1).to(self.embeddings.class_embedding.dtype)
        hidden = self.encoder(self.embeddings(tiles))
        squares = hidden[:, 1:].unflatten(1, (self.grid, 2, self.grid, 2)).transpose(2, 3)
        return self.mlp1(squares.flatten(3)).flatten(1, 2).unflatten(0, pixels.shape[:2]).flatten(1, 2)

    def last(self) -> nn.Linear:
        """What makes features of whatever the encoder has found."""
        last = self.mlp1[-1]
        assert isinstance(last, nn.Linear)
        return last
