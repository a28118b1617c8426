"""Tensor parallelism: which part of each dimension a rank owns."""

from dataclasses import dataclass
from pathlib import Path

from engine.build_flags import BuildFlag
from engine.errors import EngineError
from engine.model_config import LanguageConfig

SHARDED = "large"
"""The model of a pair that several ranks share; the small one is whole on whoever leads."""


@dataclass(frozen=True)
class Shard:
    """Place of one process among those that share a model (Megatron's column/row split)."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise EngineError(f"rank {self.rank} is outside 0..{self.world_size - 1}; give a rank below {BuildFlag.TP}")

    def part(self, size: int, what: str) -> range:
        """The contiguous part of `size` that this rank owns; `what` names the dimension if it does not divide."""
        if size % self.world_size:
            raise EngineError(
                f"{what} {size} does not divide by world_size {self.world_size}; "
                f"choose a {BuildFlag.TP} that divides it"
            )
        part = size // self.world_size
        return range(self.rank * part, (self.rank + 1) * part)

    def kv_heads(self, num_kv_heads: int) -> range:
        """KV heads of this rank: split when there are enough, otherwise each is replicated on several ranks."""
        if num_kv_heads >= self.world_size:
            return self.part(num_kv_heads, "num_kv_heads")
        if self.world_size % num_kv_heads:
            raise EngineError(
                f"world_size {self.world_size} is not a multiple of num_kv_heads {num_kv_heads}; "
                f"choose a {BuildFlag.TP} that is"
            )
        head = self.rank * num_kv_heads // self.world_size
        return range(head, head + 1)

    def vocabulary(self, vocab_size: int) -> range:
        """Rows of embedding and head that this rank owns; the last rank's may reach past the vocabulary (zero rows)."""
        part = -(-vocab_size // self.world_size)
        return range(self.rank * part, (self.rank + 1) * part)


def check_shards(config: LanguageConfig, shard: Shard, model: str) -> None:
    """Raises EngineError, naming `model`, unless its language model divides among the ranks."""
    try:
        shard.part(config.num_heads, "num_heads")
        shard.kv_heads(config.num_kv_heads)
        shard.part(config.intermediate_size, "intermediate_size")
    except EngineError as error:
        raise EngineError(f"{model}: {error}") from None


def stage_path(engine: Path, stage: int) -> Path:
    """File of one stage of a rank's engine, where a target cuts it at its all-reduces; `engine` is the whole's name."""
    return engine.with_suffix(f".{stage:03}{engine.suffix}")
