"""What is asked of a pair: questions that are answered together, all of one size."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.config import GuidanceConfig, SamplingConfig
from engine.model_config import ModelConfig


@dataclass(frozen=True)
class Workload:
    """batch: questions at once. Of each: tiles of its pictures, thumbnails included; words of the prompt; answer.

    encoded_tiles: those of them that the large model is shown where it is pruned, others hold nothing that it is to
    see; None is all. Where a picture is not cut up, it is one of as many pixels.
    """

    tiles: int
    batch: int = 1
    text_tokens: int = 64
    new_tokens: int = SamplingConfig.max_new_tokens
    encoded_tiles: int | None = None

    def visual_tokens(self, config: ModelConfig) -> int:
        return config.tokens_of(self.tiles)

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
        seen = max(kept, config.tokens_of(self.shown_tiles(guidance)))
        return [self.text_tokens + (kept if point >= guidance.prune_layer else seen) for point in (0, *prune_layers)]

    def shown_tiles(self, guidance: GuidanceConfig | None) -> int:
        """That the vision encoder of a model with this guidance sees."""
        return self.tiles if guidance is None or self.encoded_tiles is None else self.encoded_tiles
