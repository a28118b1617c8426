"""What a simulation goes by, of runs that were watched."""

import numpy as np
import pytest

from engine.planning.load.measured import Note, times_of

TURN, RESUME, AFTER = 1e-3, 5e-4, 8e-3


def test_nothing_of_the_time_is_lost() -> None:
    """Runs, some of them far slower than others of their size, and what comes between them; but not when everybody
    waits for pictures."""
    rng, now, busy, notes = np.random.default_rng(0), 0.0, 0.0, []
    for question in range(60):
        notes.append(Note("small", "outside", 1, 0, now, now + 2.0))
        now += 2.0 + 1e-3
        for role in ("small", "large"):
            rows = 100.0 * (1 + question % 4)
            steps = [("step", float(count), 1e-2 + 2e-3 * count, TURN + RESUME * count) for count in (1, 2, 4, 8)]
            for kind, size, seconds, gap in [("encode", 1.0, 0.2, AFTER), ("extend", rows, rows * 1e-3, AFTER), *steps]:
                taken = seconds * (5.0 if rng.random() < 0.02 else rng.uniform(0.9, 1.1))
                notes.append(Note(role, kind, size, 0.0, now, now + taken))
                now += taken + gap
                busy += taken + gap
    times = times_of(notes)
    assert (times.turn, times.resume) == (pytest.approx(TURN, rel=0.02), pytest.approx(RESUME, rel=0.02))
    assert times.small.outside == pytest.approx(2.0)
    said = 0.0
    for note in notes:
        if note.kind != "outside":
            (line,) = getattr(times.small if note.role == "small" else times.large, note.kind)
            count = note.rows if note.kind == "step" else 1
            said += line.seconds(note.rows, note.pairs) + times.turn + count * times.resume
    assert said == pytest.approx(busy, rel=0.01)
