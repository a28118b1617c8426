"""Curves of figures 3 and 4, drawn with matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from engine.config import ExitCriterion
from engine.errors import RequestError
from engine.evaluation.cascade import Labelled
from engine.evaluation.front import Curve, Point, front

mpl.rcParams["svg.hashsalt"] = "sgl"
"""Makes element names, and so the file, the same on every run."""


def draw_cascades(curves: Mapping[ExitCriterion, Labelled]) -> Figure:
    """Figure 4: score over the share of early exits, and over the share that the large model answers."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        cascade, auc = curve.cascade(), curve.auc()
        area = f"{name.replace('_', ' ')}: area {cascade.area():.3f}"
        left.plot(cascade.exit_ratio(), cascade.grade, label=area)
        quality = "" if auc is None else f" (AUC {auc:.3f})"
        right.plot(1 - cascade.exit_ratio(), cascade.grade, label=f"{name.replace('_', ' ')}{quality}")
    left.set(xlabel="share of questions that exit early", ylabel="score", title="Early exit by criterion")
    right.set(xlabel="share of questions sent to the large model", ylabel="score", title="Cascade")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def draw_front(curves: Sequence[Curve], chosen: Point, unit: str) -> Figure:
    """Score over cost of every curve, what nothing beats in both, and what was chosen."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes, best = figure.subplots(), front(curves)
    for curve in curves:
        reachable = curve.cascade.reachable
        axes.plot(curve.cascade.cost[reachable], curve.cascade.grade[reachable], linewidth=1, label=curve.name())
    axes.plot([point.cost for point in best], [point.score for point in best], "k--", linewidth=1.5, label="front")
    axes.plot([chosen.cost], [chosen.score], "ko", label="chosen")
    axes.set(xlabel=f"cost, {unit}", ylabel="score", title="What settings and thresholds give")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_ratios(lines: Mapping[str, Mapping[float, float]], unpruned: float) -> Figure:
    """Figure 3: score in percent of the unpruned model over average retention, a line for each guidance source."""
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        retentions = sorted(points)
        axes.plot(
            [100 * retention for retention in retentions],
            [100 * points[retention] / unpruned for retention in retentions],
            marker="o",
            label=name,
        )
    axes.axhline(100, color="grey", linewidth=1, linestyle=":")
    axes.set(xlabel="average retention, %", ylabel="score, % of the unpruned large model", title="Guidance sources")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Raises RequestError."""
    try:
        figure.savefig(path, dpi=120, metadata={"Software": None} if path.suffix == ".png" else None)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path} cannot be written ({error}); choose another file, ending in .png") from None
