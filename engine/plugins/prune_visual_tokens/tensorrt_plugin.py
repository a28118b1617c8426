"""The kernel of `sgl::prune_visual_tokens` as a plugin of TensorRT."""

import tensorrt.plugin as trtp
from tensorrt.plugin import TensorDesc

from engine.plugins.function import DOMAIN
from engine.plugins.prune_visual_tokens.kernel import prune_kernel
from engine.plugins.tensorrt_aot import Compiled, compiled

NAME = f"{DOMAIN}::prune_rows"


def register(capability: int, lazy_register: bool) -> None:
    """See `register_plugins`."""

    @trtp.register(NAME, lazy_register=lazy_register)
    def describe(
        hidden: TensorDesc, rope_cos: TensorDesc, rope_sin: TensorDesc, keep_index: TensorDesc
    ) -> tuple[TensorDesc, TensorDesc, TensorDesc]:
        """[B,S,C], [B,S,D/2] x2, int64 [B,S'] -> [B,S',C], [B,S',D/2] x2"""
        batch, kept = keep_index.shape_expr
        return tuple(
            trtp.from_shape_expr((batch, kept, rows.shape_expr[2]), rows.dtype) for rows in (hidden, rope_cos, rope_sin)
        )

    @trtp.aot_impl(NAME)
    def implement(
        hidden: TensorDesc,
        rope_cos: TensorDesc,
        rope_sin: TensorDesc,
        keep_index: TensorDesc,
        outputs: tuple[TensorDesc],
        tactic: int,
    ) -> Compiled:
        (_, sequence, width), (batch, kept) = hidden.shape_expr, keep_index.shape_expr
        # The widths are the model's: constants of every profile.
        kernel = prune_kernel(width.constant_value(), rope_cos.shape_expr[2].constant_value())
        return compiled(kernel, {"T": hidden, "A": rope_cos}, capability, (kept, batch), (sequence, kept))
