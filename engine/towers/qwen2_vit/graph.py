"""The graph of Qwen2-VL's ViT, and of Qwen2.5-VL's: rotary attention over the patches of one picture, or of windows of
it; squares of patches become tokens.

Shapes: P patches of a picture, W windows of E places, V visual tokens, M*M patches of each, K values of a
patch, C hidden size.
"""

from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir
from onnxscript import nn

from engine import bindings as names
from engine.bindings import vision_bindings
from engine.dims import Limits
from engine.graphs.declaration import data_type, declare, finish
from engine.graphs.layers import Linear, Weight, WeightPart, cast, dims, like, norm, set_dtype, shaped
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


@dataclass(frozen=True)
class Around:
    """What travels from block to block beside the hidden states: angles [1,P,D/2], and windows, if there are any."""

    cos: ir.Value
    sin: ir.Value
    windows: tuple[ir.Value, ir.Value, ir.Value] | None
    """[W,E], [W,1,E,E], [P]: `window_inputs`."""


class Attention(nn.Module):
    """[1,P,C] -> [1,P,C]: every patch sees every other of its picture, or of its window."""

    def __init__(self, config: QwenVitConfig, lowering: Lowering) -> None:
        super().__init__()
        self.size = config.hidden_size
        self.qkv = Linear(self.size, 3 * self.size, bias=True)
        self.proj = Linear(self.size, self.size, bias=True)
        self.num_heads = config.num_heads
        self.function = lowering.full_attention(config.num_heads)

    def forward(self, op: Any, x: ir.Value, around: Around) -> ir.Value:
        query, key, value = op.Split(self.qkv(op, x), axis=-1, num_outputs=3, _outputs=3)
        heads = self.num_heads
        query, key = (op.RotaryEmbedding(part, around.cos, around.sin, num_heads=heads) for part in (query, key))
        if around.windows is None:
            return self.proj(op, like(op.call(self.function, query, key, value), value))
        patch, mask, place = around.windows
        inside = [self.cut(op, part, patch) for part in (query, key, value)]
        # No matrix of a window is large, so that the standard operator serves every target.
        attended = op.Attention(*inside, mask, q_num_heads=heads, kv_num_heads=heads)
        joined = op.Gather(op.Reshape(attended, [1, -1, self.size]), place, axis=1)
        return self.proj(op, like(joined, value))

    def cut(self, op: Any, x: ir.Value, patch: ir.Value) -> ir.Value:
        """[1,P,C], [W,E] -> [W,E,C]"""
        number, room = dims(patch)
        cut = op.Reshape(op.Gather(x, patch, axis=1), [-1, room, self.size])
        return shaped(cut, [number, room, self.size], x)


class MLP(nn.Module):
    """[1,P,C] -> [1,P,C]: fc2(quick_gelu(fc1(x)))"""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        inner = self.fc1(op, x)
        return self.fc2(op, op.Mul(inner, op.Sigmoid(op.Mul(inner, QUICK_GELU))))


class GatedMLP(nn.Module):
    """[1,P,C] -> [1,P,C]: down(silu(gate(x)) * up(x))"""

    def __init__(self, config: QwenVitConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def forward(self, op: Any, x: ir.Value) -> ir.Value:
        gate = self.gate_proj(op, x)
        return self.down_proj(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), self.up_proj(op, x)))


class Block(nn.Module):
    """[1,P,C] -> [1,P,C]: pre-norm attention and MLP with residuals."""

    def __init__(self, config: QwenVitConfig, lowering: Lowering) -> None:
        super().__init__()
        self.norm1 = norm(config.norm, config.hidden_size, NORM_EPS)
        self.attn = Attention(config, lowering)
        self.norm2 = norm(config.norm, config.hidden_size, NORM_EPS)
        self.mlp = GatedMLP(config) if config.is_gated else MLP(config)

    def forward(self, op: Any, hidden: ir.Value, around: Around) -> ir.Value:
        hidden = op.Add(hidden, self.attn(op, self.norm1(op, hidden), around))
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
        self.ln_q = norm(config.norm, config.hidden_size, NORM_EPS)
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
        self.whole_layers = config.whole_layers

    def forward(self, op: Any, patches: ir.Value, around: Around) -> ir.Value:
        hidden, whole = self.patch_embed(op, patches), replace(around, windows=None)
        for index, block in enumerate(self.blocks):
            hidden = block(op, hidden, whole if index in self.whole_layers else around)
        return self.merger(op, hidden)


def vision_graph(
    config: QwenVitConfig, limits: Limits, lowering: Lowering = ONNXRUNTIME, dtype: str = "float32"
) -> ir.Model:
    """Declare the graph of a vision engine; its parameters carry no data yet. dtype: of them and of activations."""
    bound = vision_bindings(config, limits, dtype)
    builder, inputs = declare("vision", bound, lowering.opset)
    model = VisionModel(config, lowering, ir.SymbolicDim(str(limits.picture_tokens())))
    set_dtype(model, dtype)

    def read(name: str) -> ir.Value:
        return cast(builder.op, inputs[name], data_type(dtype))

    windows = None
    if config.window is not None:
        # ONNX Runtime wants a row of the mask for each query.
        mask = builder.op.Expand(read(names.WINDOW_MASK), [1, 1, config.window_patches(), 1])
        windows = inputs[names.WINDOW_PATCH], mask, inputs[names.WINDOW_PLACE]
    around = Around(read(names.PATCH_COS), read(names.PATCH_SIN), windows)
    return finish(builder, bound, {names.VISUAL_FEATURES: model(builder.op, read(names.PATCHES), around)})
