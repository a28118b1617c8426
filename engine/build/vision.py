"""The vision graph: InternViT over square tiles, pixel shuffle, and the projector into the language model.

Shapes: N tiles, P patches along one side of a tile, S = P * P + 1 tokens, V visual tokens of a tile, C hidden size.
"""

from typing import Any

import onnx_ir as ir
from onnxscript import nn

from engine import bindings as names
from engine.bindings import vision_bindings
from engine.build.graph import data_type, declare, finish
from engine.build.layers import LayerNorm, Linear, RMSNorm, Weight, cast, norm, set_dtype
from engine.dims import Limits
from engine.model_config import VisionConfig
from engine.plugins.lowering import Lowering
from engine.plugins.targets.onnxruntime import ONNXRUNTIME

PROJECTOR_EPS = 1e-5
"""Of the projector's norm, which checkpoints do not name."""


def num_patches(config: VisionConfig) -> int:
    """P * P, without the class token."""
    return (config.image_size // config.patch_size) ** 2


class PatchEmbedding(nn.Module):
    """[N,3,H,W] -> [N,P*P,C]: one vector for each patch, row by row."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.size = config.patch_size
        self.weight = Weight((config.hidden_size, 3, self.size, self.size))
        self.bias = Weight((config.hidden_size,))

    def forward(self, op: Any, pixels: ir.Value) -> ir.Value:
        patches = op.Conv(pixels, self.weight, self.bias, strides=[self.size, self.size])
        return op.Transpose(op.Reshape(patches, [0, 0, -1]), perm=[0, 2, 1])


class Embeddings(nn.Module):
    """[N,3,H,W] -> [N,S,C]: class token and patches, with their positions added."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        positions = num_patches(config) + 1
        self.class_embedding = Weight((1, 1, config.hidden_size))
        self.position_embedding = Weight((1, positions, config.hidden_size))
        self.patch_embedding = PatchEmbedding(config)

    def forward(self, op: Any, pixels: ir.Value) -> ir.Value:
        tiles = op.Concat(op.Shape(pixels, start=0, end=1), [1, 1], axis=0)
        tokens = op.Concat(op.Expand(self.class_embedding, tiles), self.patch_embedding(op, pixels), axis=1)
        return op.Add(tokens, self.position_embedding)


class Attention(nn.Module):
    """[N,S,C] -> [N,S,C]: every token sees every other of its tile."""

    def __init__(self, config: VisionConfig, lowering: Lowering) -> None:
        super().__init__()
        size = config.hidden_size
        self.qkv = Linear(size, 3 * size, config.qkv_bias)
        # Over all heads at once, unlike the QK norm of most language models.
        self.q_norm = RMSNorm(size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(size, config.norm_eps) if config.qk_norm else None
        self.proj = Linear(size, size, bias=True)
        self.function = lowering.full_attention(config.num_heads)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        query, key, value = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(op, query), self.k_norm(op, key)
        attended = op.call(self.function, query, key, value)
        # ONNX cannot infer shapes through ops of the domain `sgl`.
        attended.type, attended.shape = query.type, query.shape
        return self.proj(op, attended)


class Gelu(nn.Module):
    """[...] -> [...]: the exact GELU, by erf."""

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.Gelu(x)


class MLP(nn.Module):
    """[N,S,C] -> [N,S,C]: fc2(gelu(fc1(x)))"""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, x)))


class EncoderLayer(nn.Module):
    """[N,S,C] -> [N,S,C]: pre-norm attention and MLP with residuals, each branch scaled channel by channel."""

    def __init__(self, config: VisionConfig, lowering: Lowering) -> None:
        super().__init__()
        self.norm1 = norm(config.norm, config.hidden_size, config.norm_eps)
        self.attn = Attention(config, lowering)
        self.ls1 = Weight((config.hidden_size,))
        self.norm2 = norm(config.norm, config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)
        self.ls2 = Weight((config.hidden_size,))

    def forward(self, op: Any, hidden: ir.Value) -> ir.Value:
        hidden = op.Add(hidden, op.Mul(self.attn(op, self.norm1(op, hidden)), self.ls1))
        return op.Add(hidden, op.Mul(self.mlp(op, self.norm2(op, hidden)), self.ls2))


class Encoder(nn.Module):
    """[N,S,C] -> [N,S,C]; no norm follows the last layer."""

    def __init__(self, config: VisionConfig, lowering: Lowering) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(config, lowering) for _ in range(config.num_layers)])

    def forward(self, op: Any, hidden: ir.Value) -> ir.Value:
        for layer in self.layers:
            hidden = layer(op, hidden)
        return hidden


def pixel_shuffle(op: Any, tokens: ir.Value, config: VisionConfig) -> ir.Value:
    """[N,P*P,C] -> [N,V,R*R*C]: R x R neighbouring patches become one token (published `ps_version` v2)."""
    grid = config.grid()
    side = config.image_size // config.patch_size // grid
    squares = op.Reshape(tokens, [0, grid, side, grid, side, config.hidden_size])
    squares = op.Transpose(squares, perm=[0, 1, 3, 2, 4, 5])
    return op.Reshape(squares, [0, grid * grid, side * side * config.hidden_size])


class VisionModel(nn.Module):
    """The whole engine: [N,3,H,W] -> [N,V,C of the language model]."""

    def __init__(self, config: VisionConfig, lowering: Lowering) -> None:
        super().__init__("")
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, lowering)
        shuffled = num_patches(config) // config.tokens_per_tile() * config.hidden_size
        self.mlp1 = nn.Sequential(
            LayerNorm(shuffled, PROJECTOR_EPS),
            Linear(shuffled, config.output_size, bias=True),
            Gelu(),
            Linear(config.output_size, config.output_size, bias=True),
        )

    def forward(self, op: Any, pixels: ir.Value) -> ir.Value:
        hidden = self.encoder(op, self.embeddings(op, pixels))
        _, patches = op.Split(hidden, [1, num_patches(self.config)], axis=1, _outputs=2)
        return self.mlp1(op, pixel_shuffle(op, patches, self.config))


def vision_graph(
    config: VisionConfig, limits: Limits, lowering: Lowering = ONNXRUNTIME, dtype: str = "float32"
) -> ir.Model:
    """Declare the graph of a vision engine; its parameters carry no data yet.

    No rank owns a part of it: each holds the whole encoder and takes a share of the tiles.
    dtype: of parameters and activations.
    """
    bound = vision_bindings(config, limits, dtype)
    builder, inputs = declare("vision", bound, lowering.opset)
    model = VisionModel(config, lowering)
    set_dtype(model, dtype)
    features = model(builder.op, cast(builder.op, inputs[names.PIXEL_VALUES], data_type(dtype)))
    return finish(builder, bound, {names.VISUAL_FEATURES: features})
