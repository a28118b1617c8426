"""Dimensions of a vision encoder that is tiny and of odd sizes."""

from engine.model_config import InternVitConfig, Norm

TINY_VISION = InternVitConfig(
    image_size=28,
    patch_size=7,
    hidden_size=24,
    num_layers=2,
    num_heads=3,
    intermediate_size=44,
    norm=Norm.LAYER,
    norm_eps=1e-6,
    qkv_bias=True,
    qk_norm=False,
    downsample_ratio=0.5,
    output_size=10,
)
