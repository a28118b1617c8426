"""The graph of Qwen2-VL's ViT: rotary attention over the patches of one picture, squares of patches merged to tokens.

Shapes: P patches of a picture, V visual tokens, M*M patches of each, K values of a patch, C hidden size.
"""

from typing import Any

import onnx_ir as ir
from onnxscript import nn

from engine import bindings as names
from engine.bindings import vision_bindings
from engine.dims import Limits
from engine.graphs.declaration import data_type, declare, finish
from engine.graphs.layers import LayerNorm, Linear, Weight, WeightPart, cast, like, set_dtype, shaped
from engine.model_config import QwenVitConfig
from engine.plugins.lowering import Lowering
from engine.plugins.targets.onnxruntime import ONNXRUNTIME

NORM_EPS = 1e-6
QUICK_GELU = 1.702
"""x * sigmoid(1.702 x)"""


class PatchEmbedding(nn.Module):
    """[1,P,K] -> [1,P,C]: the published convolution, whose steps are as long as its kernel, is one product."""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        size = config.patch_size
        stored = (config.hidden_size, 3, config.frames, size, size)
        self.weight = Weight(stored, WeightPart(is_flat=True, transpose=True))

    def forward(self, op: Any, patches: ir.Value) -> ir.Value:
        return op.MatMul(patches, self.weight)


class Attention(nn.Module):
    """[1,P,C] -> [1,P,C]: every patch sees every other of its picture."""

    def __init__(self, config: QwenVitConfig, lowering: Lowering) -> None:
        super().__init__()
        size = config.hidden_size
        self.qkv = Linear(size, 3 * size, bias=True)
        self.proj = Linear(size, size, bias=True)
        self.num_heads = config.num_heads
        self.function = lowering.full_attention(config.num_heads)

    def forward(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        query, key, value = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        query, key = (op.RotaryEmbedding(part, cos, sin, num_heads=self.num_heads) for part in (query, key))
        return self.proj(op, like(op.call(self.function, query, key, value), value))


class MLP(nn.Module):
    """[1,P,C] -> [1,P,C]: fc2(quick_gelu(fc1(x)))"""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        inner = self.fc1(op, x)
        return self.fc2(op, op.Mul(inner, op.Sigmoid(op.Mul(inner, QUICK_GELU))))


class Block(nn.Module):
    """[1,P,C] -> [1,P,C]: pre-norm attention and MLP with residuals."""

    def __init__(self, config: QwenVitConfig, lowering: Lowering) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, NORM_EPS)
        self.attn = Attention(config, lowering)
        self.norm2 = LayerNorm(config.hidden_size, NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, op: Any, hidden: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        hidden = op.Add(hidden, self.attn(op, self.norm1(op, hidden), cos, sin))
        return op.Add(hidden, self.mlp(op, self.norm2(op, hidden)))


class Gelu(nn.Module):
    """[...] -> [...]: the exact GELU, by erf."""

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        return op.Gelu(x)


class Merger(nn.Module):
    """[1,P,C] -> [1,V,C of the language model]: the M*M patches of a token side by side, and two products."""

    def __init__(self, config: QwenVitConfig, tokens: ir.SymbolicDim) -> None:
        super().__init__()
        self.wide, self.tokens = config.merged**2 * config.hidden_size, tokens
        self.ln_q = LayerNorm(config.hidden_size, NORM_EPS)
        self.mlp = nn.Sequential(
            Linear(self.wide, self.wide, bias=True), Gelu(), Linear(self.wide, config.output_size, bias=True)
        )

    def forward(self, op: Any, hidden: ir.Value) -> ir.Value:
        joined = op.Reshape(self.ln_q(op, hidden), [1, -1, self.wide])
        return self.mlp(op, shaped(joined, [1, self.tokens, self.wide], hidden))


class VisionModel(nn.Module):
    """The whole engine: [1,P,K] and the patches' angles -> [1,V,C of the language model]."""

    def __init__(self, config: QwenVitConfig, lowering: Lowering, tokens: ir.SymbolicDim) -> None:
        super().__init__("")
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList([Block(config, lowering) for _ in range(config.num_layers)])
        self.merger = Merger(config, tokens)

    def forward(self, op: Any, patches: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        hidden = self.patch_embed(op, patches)
        for block in self.blocks:
            hidden = block(op, hidden, cos, sin)
        return self.merger(op, hidden)


def vision_graph(
    config: QwenVitConfig, limits: Limits, lowering: Lowering = ONNXRUNTIME, dtype: str = "float32"
) -> ir.Model:
    """Declare the graph of a vision engine; its parameters carry no data yet. dtype: of them and of activations."""
    bound = vision_bindings(config, limits, dtype)
    builder, inputs = declare("vision", bound, lowering.opset)
    model = VisionModel(config, lowering, ir.SymbolicDim(str(limits.picture_tokens())))
    set_dtype(model, dtype)
    wanted = (names.PATCHES, names.PATCH_COS, names.PATCH_SIN)
    read = (cast(builder.op, inputs[name], data_type(dtype)) for name in wanted)
    return finish(builder, bound, {names.VISUAL_FEATURES: model(builder.op, *read)})
