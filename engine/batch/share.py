"""A rank's part of its machine: cores, memory and GPUs that no other rank of it uses."""

import os
from dataclasses import dataclass

from engine.errors import EngineError
from engine.gpu import VISIBLE


@dataclass(frozen=True)
class Machine:
    """rank: among those of the machine. cores: of each of them, that it was started on."""

    rank: int
    cores: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """Ranks of the machine."""
        return len(self.cores)

    def own_cores(self) -> tuple[int, ...]:
        """A part of those that all ranks have in common; what a launcher has bound them to stays as it is."""
        mine = self.cores[self.rank]
        sharing = [rank for rank, cores in enumerate(self.cores) if cores == mine]
        place, count = sharing.index(self.rank), len(sharing)
        if count > len(mine):
            return (mine[place % len(mine)],)
        return mine[place * len(mine) // count : (place + 1) * len(mine) // count]

    def take_cores(self) -> None:
        """Before the engine is loaded, whose threads stay on them."""
        os.sched_setaffinity(0, self.own_cores())

    def take_gpus(self, count: int) -> None:
        """So many; before anything asks the driver. Raises EngineError."""
        os.environ[VISIBLE] = ",".join(self.own_gpus(count, os.environ.get(VISIBLE)))

    def own_gpus(self, count: int, visible: str | None) -> list[str]:
        """Raises EngineError where there are too few. visible: where a launcher has given each rank its own, they stay
        as they are."""
        first = self.rank * count
        if visible is None:
            return [str(gpu) for gpu in range(first, first + count)]
        there = [gpu for gpu in visible.split(",") if gpu]
        if len(there) <= count:
            return there
        if first + count > len(there):
            raise EngineError(
                f"{self.size} ranks of this machine need {count} GPUs each, and {VISIBLE} names {len(there)}; start "
                "fewer ranks there"
            )
        return there[first : first + count]
