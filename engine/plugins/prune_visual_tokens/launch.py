"""The kernel of `sgl::prune_visual_tokens` on torch tensors."""

import torch

from engine.plugins.prune_visual_tokens.kernel import prune_kernel


def prune_visual_tokens(
    hidden: torch.Tensor, rope_cos: torch.Tensor, rope_sin: torch.Tensor, keep_index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B,S,C], [B,S,D/2] x2, int64 [B,S'] -> [B,S',C], [B,S',D/2] x2"""
    (batch, kept), (_, sequence, width), half_dim = keep_index.shape, hidden.shape, rope_cos.shape[2]
    kept_hidden = hidden.new_empty(batch, kept, width)
    kept_cos, kept_sin = (angles.new_empty(batch, kept, half_dim) for angles in (rope_cos, rope_sin))
    prune_kernel(width, half_dim).launch(
        (kept, batch), hidden, rope_cos, rope_sin, keep_index, sequence, kept, kept_hidden, kept_cos, kept_sin
    )
    return kept_hidden, kept_cos, kept_sin
