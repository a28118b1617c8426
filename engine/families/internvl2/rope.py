"""Published rotary embedding settings -> RopeConfig."""

from dataclasses import replace

from engine.families.fields import Fields
from engine.model_config import AXES, RopeConfig, RopeScaling

SCALINGS = {
    "default": RopeScaling.NONE,
    "dynamic": RopeScaling.DYNAMIC_NTK,
    "linear": RopeScaling.LINEAR,
    "llama3": RopeScaling.LLAMA3,
    "longrope": RopeScaling.LONG,
    "su": RopeScaling.LONG,
}
TYPE_FIELDS = {"type", "rope_type"}
SECTION, OLDER_SECTION = "rope_parameters", "rope_scaling"
"""Where a configuration keeps them; `rope_theta` stands in the first, and beside the second."""
PARAMETERS = {
    RopeScaling.NONE: set(),
    RopeScaling.DYNAMIC_NTK: {"factor"},
    RopeScaling.LINEAR: {"factor"},
    RopeScaling.LLAMA3: {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    RopeScaling.LONG: {"short_factor", "long_factor", "original_max_position_embeddings"},
}


def read_rope(language: Fields, head_dim: int, has_sections: bool = False) -> RopeConfig:
    """The base, the scaling and the lengths of a language model's configuration.

    has_sections: its positions may have more numbers than one.
    """
    max_positions = language.integer("max_position_embeddings")
    language.only("partial_rotary_factor", None, 1.0)
    if language.has(SECTION):
        section = language.section(SECTION)
        theta = section.number("rope_theta")
        section.only("partial_rotary_factor", None, 1.0)
        beside = {"rope_theta", "partial_rotary_factor"}
        published = Fields({k: v for k, v in section.values.items() if k not in beside}, section.place)
    else:
        theta = language.number("rope_theta")
        if not language.has(OLDER_SECTION):
            return RopeConfig(theta, max_positions)
        published = language.section(OLDER_SECTION)
    if has_sections and published.has("mrope_section"):
        return _read_sections(published, RopeConfig(theta, max_positions), head_dim)
    kind = published.text("rope_type" if published.has("rope_type") else "type")
    if kind not in SCALINGS:
        published.refuse(f"type {kind!r} is not supported, only {', '.join(SCALINGS)}; choose another checkpoint")
    scaling = SCALINGS[kind]
    unknown = sorted(set(published.values) - TYPE_FIELDS - PARAMETERS[scaling])
    if unknown:
        published.refuse(f"{unknown[0]} is not supported with type {kind!r}; choose another checkpoint")
    match scaling:
        case RopeScaling.NONE:
            return RopeConfig(theta, max_positions)
        case RopeScaling.DYNAMIC_NTK | RopeScaling.LINEAR:
            return RopeConfig(theta, max_positions, scaling, factor=published.number("factor"))
        case RopeScaling.LLAMA3:
            return RopeConfig(
                theta,
                max_positions,
                scaling,
                factor=published.number("factor"),
                original_max_positions=published.integer("original_max_position_embeddings"),
                low_freq_factor=published.number("low_freq_factor"),
                high_freq_factor=published.number("high_freq_factor"),
            )
        case RopeScaling.LONG:
            # Phi-3 keeps the trained length beside rope_scaling, later files inside it.
            trained = published if published.has("original_max_position_embeddings") else language
            return RopeConfig(
                theta,
                max_positions,
                scaling,
                original_max_positions=trained.integer("original_max_position_embeddings"),
                short_factor=published.numbers("short_factor", head_dim // 2),
                long_factor=published.numbers("long_factor", head_dim // 2),
            )


def _read_sections(published: Fields, rope: RopeConfig, head_dim: int) -> RopeConfig:
    """The frequencies that turn with a token's time, row and column, in turn."""
    for name in TYPE_FIELDS:
        published.only(name, "mrope", "default", None)
    published.only("mrope_interleaved", False, None)
    unknown = sorted(set(published.values) - TYPE_FIELDS - {"mrope_section", "mrope_interleaved"})
    if unknown:
        published.refuse(f"{unknown[0]} is not supported beside mrope_section; choose another checkpoint")
    sections = published.numbers("mrope_section", AXES)
    if sum(sections) != head_dim // 2 or any(not part.is_integer() for part in sections):
        published.refuse(
            f"mrope_section {list(sections)} does not add up to {head_dim // 2}, half of the head dimension; download "
            "the published config.json again"
        )
    return replace(rope, sections=tuple(map(int, sections)))
