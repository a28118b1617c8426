"""What is asked of a pair: questions that are answered together, all of one size."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config import GuidanceConfig, SamplingConfig
from engine.families import by_name
from engine.model_config import ModelConfig, QwenVitConfig

FRAME = 1280, 720
"""Pixels of a clip's frames; of a model that scales larger ones down, about the most tokens that it makes."""


@dataclass(frozen=True)
class Workload:
    """batch: questions at once. Of each: tiles of its pictures, thumbnails included; words of the prompt; answer;
    frames of a clip.

    encoded_tiles: those of them that the large model is shown where it is pruned, others hold nothing that it is to
    see; None is all. Where a picture is not cut up, it is one of as many pixels.
    """

    tiles: int
    batch: int = 1
    text_tokens: int = 64
    new_tokens: int = SamplingConfig.max_new_tokens
    frames: int = 0
    encoded_tiles: int | None = None

    def visual_tokens(self, config: ModelConfig) -> int:
        return config.tokens_of(self.tiles) + sum(self._clip_rows(config))

    def pieces(self, config: ModelConfig, guidance: GuidanceConfig | None = None) -> dict[int, int]:
        """What a model with this guidance encodes of a question: numbers of pieces by their visual tokens."""
        if not isinstance(config.vision, QwenVitConfig):
            return {config.tokens_of(1): self.shown_tiles(guidance) + self.frames}
        rows = self._clip_rows(config)
        pictures = {config.tokens_of(self.tiles): 1} if self.tiles else {}
        return pictures | ({rows[0]: len(rows) + pictures.get(rows[0], 0)} if rows else {})

    def media(self, large: str) -> str:
        """In words. large: name of the model that may be shown fewer tiles."""
        shown = "" if self.encoded_tiles is None else f", {self.encoded_tiles} of them encoded by {large}"
        both = (f"{self.tiles} tiles{shown}" * bool(self.tiles), f"{self.frames} frames" * bool(self.frames))
        return " and ".join(filter(None, both))

    def _clip_rows(self, config: ModelConfig) -> Sequence[int]:
        return by_name(config.family).clip_rows(config, self.frames, *FRAME) if self.frames else ()

    def prompt_tokens(self, config: ModelConfig) -> int:
        return self.visual_tokens(config) + self.text_tokens

    def context(self, config: ModelConfig) -> int:
        """Tokens of a question and its answer."""
        return self.prompt_tokens(config) + self.new_tokens

    def prompt_rows(
        self, config: ModelConfig, prune_layers: Sequence[int], guidance: GuidanceConfig | None
    ) -> list[int]:
        """Prompt tokens that the layers of each segment see. guidance: resolved; None keeps all."""
        if guidance is None:
            return [self.prompt_tokens(config)] * (len(prune_layers) + 1)
        assert guidance.prune_layer is not None, "guidance is resolved for the model"
        kept = guidance.num_kept(self.visual_tokens(config))
        seen = max(kept, config.tokens_of(self.shown_tiles(guidance)) + sum(self._clip_rows(config)))
        return [self.text_tokens + (kept if point >= guidance.prune_layer else seen) for point in (0, *prune_layers)]

    def shown_tiles(self, guidance: GuidanceConfig | None) -> int:
        """That the vision encoder of a model with this guidance sees."""
        return self.tiles if guidance is None or self.encoded_tiles is None else self.encoded_tiles
