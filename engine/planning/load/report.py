"""What a load asks for, in words, as JSON and as a picture."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Column, Table

from engine.errors import RequestError
from engine.planning.load.goal import MOST_BUSY
from engine.planning.load.outlook import PERCENTILES, Estimate, Outlook
from engine.planning.load.search import Found, Terms


def load_json(terms: Terms, rate: float, source: str, quality: str, best: Sequence[Found]) -> dict[str, Any]:
    """Keys as docs/options.md says them. best: the front, or the one way that was asked for."""
    return {
        "questions_per_second": rate,
        "times": {"from": source} | asdict(terms.service.times),
        "goals": [str(goal) for goal in terms.goals],
        "quality": quality,
        "front": [_json(terms, one) for one in best],
    }


def _json(terms: Terms, found: Found) -> dict[str, Any]:
    way, outlook = found.way, found.outlook
    units = None if found.replicas is None else found.replicas * terms.service.each
    return {
        "replicas": found.replicas,
        "units": units,
        "unit": terms.service.unit,
        "quality": way.quality,
        "retention_ratio": None if way.guidance is None else way.guidance.retention_ratio,
        "prune_layer": None if way.guidance is None else way.guidance.prune_layer,
        "exit_threshold": way.threshold,
        "exit_ratio": way.traffic.exit_ratio(),
        "max_running": way.max_running,
        "utilisation": outlook.utilisation,
        "refused": outlook.refused,
        "questions": outlook.questions,
        "first_text": _percentiles(outlook.first),
        "answer": _percentiles(outlook.last),
    }


def _percentiles(estimates: Any) -> dict[str, dict[str, float]]:
    return {f"p{share}": asdict(estimates[share]) for share in PERCENTILES}


def load_tables(terms: Terms, rate: float, source: str, quality: str, best: Sequence[Found]) -> RenderableType:
    """The front where there is more than one way, else the percentiles of that one."""
    goals = " and ".join(map(str, terms.goals)) or f"busy for at most {MOST_BUSY:.0%} of the time"
    head = f"{rate:g} questions/s that come at random · {goals}\ntimes: {source}"
    unsure = max((one.error / one.seconds for found in best for one in _nineties(found.outlook)), default=0.0)
    count = sum(found.outlook.questions for found in best)
    end = f"{count:,} questions simulated; 95th percentiles are off by at most {unsure:.0%}, 95 times in 100"
    return Group(head, _front(terms, quality, best), *([_details(best[0])] if len(best) == 1 else []), end)


def _front(terms: Terms, quality: str, best: Sequence[Found]) -> Table:
    names = (
        f"{terms.service.unit}s",
        quality,
        "kept",
        "from layer",
        "exits",
        "at once",
        "busy",
        "ttft p95",
        "answer p95",
    )
    table = Table(*(Column(name, justify="right") for name in names), box=SIMPLE_HEAD)
    for found in best:
        way, outlook, guidance = found.way, found.outlook, found.way.guidance
        table.add_row(
            "too slow" if found.replicas is None else f"{found.replicas * terms.service.each:,}",
            f"{way.quality:.3f}",
            "all" if guidance is None else f"{guidance.retention_ratio:.0%}",
            "–" if guidance is None else str(guidance.prune_layer),
            f"{way.traffic.exit_ratio():.0%}",
            str(way.max_running),
            f"{outlook.utilisation:.0%}" if outlook.keeps_up else "over",
            *map(_seconds, _nineties(outlook)),
        )
    return table


def _details(found: Found) -> Table:
    shares = [f"p{share}" for share in PERCENTILES]
    table = Table("", *(Column(name, justify="right") for name in shares), box=SIMPLE_HEAD)
    for name, estimates in (("first text", found.outlook.first), ("answer", found.outlook.last)):
        table.add_row(name, *(_seconds(estimates[share]) for share in PERCENTILES))
    return table


def _nineties(outlook: Outlook) -> tuple[Estimate, Estimate]:
    return outlook.first[95], outlook.last[95]


def _seconds(estimate: Estimate) -> str:
    return f"{1000 * estimate.seconds:,.0f} ms" if estimate.seconds < 10 else f"{estimate.seconds:,.1f} s"


def draw_front(best: Sequence[Found], found: Sequence[Found], terms: Terms, quality: str, path: Path) -> None:
    """Cost over quality: every way that meets the goal, and the front. Raises RequestError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for some, colour, line in ((found, "lightgrey", ""), (best, "tab:blue", "-")):
        met = [(one.replicas * terms.service.each, one.way.quality) for one in some if one.replicas is not None]
        if met:
            axes.plot(*zip(*met, strict=True), marker="o", color=colour, linestyle=line)
    axes.set(xlabel=f"number of {terms.service.unit}", ylabel=quality, title=" and ".join(map(str, terms.goals)))
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be written ({error}); choose another file, ending in .png") from None
