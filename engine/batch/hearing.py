"""Which ranks have fallen silent: of one that died, most MPIs say nothing."""

import time

BEAT_SECONDS = 5.0
"""A rank that has nothing else to say says so this often."""
SILENCE_SECONDS = 300.0
"""After which a rank is taken to be lost."""
STANDSTILL_SECONDS = 1.0


class Hearing:
    """Of one rank. Its clock stands still while its process does: who was suspended has missed nothing."""

    def __init__(self) -> None:
        self._clock, self._looked, self._beat = 0.0, time.monotonic(), 0.0
        self._heard: dict[int, float] = {}

    def listen(self) -> None:
        now = time.monotonic()
        self._clock += min(now - self._looked, STANDSTILL_SECONDS)
        self._looked = now

    def hear(self, rank: int) -> None:
        """From now on it is expected to go on talking."""
        self._heard[rank] = self._clock

    def forget(self, rank: int) -> None:
        self._heard.pop(rank, None)

    def silent(self) -> list[int]:
        return [rank for rank, heard in self._heard.items() if self._clock > heard + SILENCE_SECONDS]

    def is_beat(self) -> bool:
        """Whether it is time to be heard; true once for each beat."""
        if self._clock < self._beat + BEAT_SECONDS:
            return False
        self._beat = self._clock
        return True
