"""The graph of SigLIP over square tiles, with LLaVA's projector and its learned row that ends a line.

Shapes: N tiles, T tokens of a tile, C hidden size.
"""

from typing import Any

import onnx_ir as ir
from onnxscript import nn

from engine import bindings as names
from engine.bindings import vision_bindings
from engine.dims import Limits
from engine.graphs.declaration import data_type, declare, finish
from engine.graphs.layers import LayerNorm, Linear, Weight, cast, like, set_dtype
from engine.model_config import SiglipConfig
from engine.plugins.lowering import Lowering
from engine.plugins.targets.onnxruntime import ONNXRUNTIME


class Embeddings(nn.Module):
    """[N,3,S,S] -> [N,T,C]: a vector for each patch, row by row, with its position added."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.size = config.patch_size
        self.weight = Weight((config.hidden_size, 3, self.size, self.size))
        self.bias = Weight((config.hidden_size,))
        self.position_embedding = Weight((config.tokens_per_tile(), config.hidden_size))

    def forward(self, op: Any, pixels: ir.Value) -> ir.Value:
        patches = op.Conv(pixels, self.weight, self.bias, strides=[self.size, self.size])
        return op.Add(op.Transpose(op.Reshape(patches, [0, 0, -1]), perm=[0, 2, 1]), self.position_embedding)


class Attention(nn.Module):
    """[N,T,C] -> [N,T,C]: every token sees every other of its tile."""

    def __init__(self, config: SiglipConfig, lowering: Lowering) -> None:
        super().__init__()
        size = config.hidden_size
        self.qkv = Linear(size, 3 * size, bias=True)
        self.out_proj = Linear(size, size, bias=True)
        self.function = lowering.full_attention(config.num_heads)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        query, key, value = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        return self.out_proj(op, like(op.call(self.function, query, key, value), query))


class MLP(nn.Module):
    """[N,T,C] -> [N,T,C]: fc2(gelu(fc1(x))), the GELU by tanh."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return self.fc2(op, op.Gelu(self.fc1(op, x), approximate="tanh"))


class EncoderLayer(nn.Module):
    """[N,T,C] -> [N,T,C]: pre-norm attention and MLP with residuals."""

    def __init__(self, config: SiglipConfig, lowering: Lowering) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, lowering)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, op: Any, hidden: ir.Value) -> ir.Value:
        hidden = op.Add(hidden, self.self_attn(op, self.layer_norm1(op, hidden)))
        return op.Add(hidden, self.mlp(op, self.layer_norm2(op, hidden)))


class Projector(nn.Module):
    """[N,T,C] -> [N,T,C of the language model]"""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.linear_1 = Linear(config.hidden_size, config.output_size, bias=True)
        self.linear_2 = Linear(config.output_size, config.output_size, bias=True)

    def forward(self, op: Any, hidden: ir.Value) -> ir.Value:
        return self.linear_2(op, op.Gelu(self.linear_1(op, hidden)))


class VisionModel(nn.Module):
    """The whole engine: [N,3,S,S] -> [N,T+1,C of the language model]; no norm follows the last layer."""

    def __init__(self, config: SiglipConfig, lowering: Lowering) -> None:
        super().__init__("")
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList([EncoderLayer(config, lowering) for _ in range(config.num_layers)])
        self.projector = Projector(config)
        self.newline = Weight((config.output_size,))

    def forward(self, op: Any, pixels: ir.Value) -> ir.Value:
        hidden = self.embeddings(op, pixels)
        for layer in self.layers:
            hidden = layer(op, hidden)
        tiles = op.Concat(op.Shape(pixels, start=0, end=1), [1, 1], axis=0)
        return op.Concat(self.projector(op, hidden), op.Expand(self.newline, tiles), axis=1)


def vision_graph(
    config: SiglipConfig, limits: Limits, lowering: Lowering = ONNXRUNTIME, dtype: str = "float32"
) -> ir.Model:
    """Declare the graph of a vision engine; its parameters carry no data yet. dtype: of them and of activations."""
    bound = vision_bindings(config, limits, dtype)
    builder, inputs = declare("vision", bound, lowering.opset)
    model = VisionModel(config, lowering)
    set_dtype(model, dtype)
    features = model(builder.op, cast(builder.op, inputs[names.PIXEL_VALUES], data_type(dtype)))
    return finish(builder, bound, {names.VISUAL_FEATURES: features})
