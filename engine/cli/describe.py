"""An answer in words, and as JSON with stable keys."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config import ExitConfig, GuidanceSource
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.guidance import Budget


def describe(answer: Answer, exit: ExitConfig, picture: Path | None = None) -> str:
    """The compact block under an answer: who answered and why, what was kept, where the time went."""
    rows = [("answered by", f"{answer.answered_by} model ({_reason(answer)})")]
    if answer.decision is not None:
        decision = answer.decision
        consistency = "not needed" if decision.consistency is None else f"{decision.consistency:.3g}"
        rows.append(("small model", f"confidence {decision.confidence:.3g} · consistency {consistency}"))
        comparison = "at least" if decision.early_exit else "below"
        criterion = decision.criterion.replace("_", " ")
        rows.append((criterion, f"{decision.value:.3g}, {comparison} the threshold {exit.exit_threshold:.3g}"))
    if answer.answered_by is AnsweredBy.LARGE and answer.small_text is not None:
        rows.append(("small said", repr(answer.small_text)))
    rows.append(("visual tokens", _visual_tokens(answer)))
    drafted = f" · {answer.accepted} of {answer.drafted} drafted" if answer.drafted else ""
    rows.append(("tokens", f"prompt {answer.prompt_tokens} · generated {len(answer.token_ids)}{drafted}"))
    stages = " · ".join(f"{stage} {1000 * seconds:.0f}" for stage, seconds in answer.seconds.items())
    rows.append(("milliseconds", f"{stages} · sum {1000 * sum(answer.seconds.values()):.0f}"))
    if picture is not None:
        rows.append(("picture", str(picture)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:{width}}  {text}" for name, text in rows)


def summarise(answer: Answer) -> str:
    """The same in one line."""
    seconds = sum(answer.seconds.values())
    return (
        f"  {answer.answered_by} model ({_reason(answer)}) · visual tokens: {_visual_tokens(answer)} · {seconds:.2f} s"
    )


def to_json(
    answer: Answer, exit: ExitConfig, picture: Path | None = None, tokens: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Keys as docs/options.md has them; null where a stage did not run. tokens: spelled, where they were asked for."""
    decision = answer.decision
    pruning = answer.guidance
    return {
        "text": answer.text,
        "answered_by": answer.answered_by,
        "finish_reason": answer.finish_reason,
        "early_exit": answer.early_exit,
        "small_text": answer.small_text,
        "prompt_tokens": answer.prompt_tokens,
        "generated_tokens": len(answer.token_ids),
        "drafted_tokens": answer.drafted,
        "accepted_tokens": answer.accepted,
        "speculated_tokens": answer.speculated,
        "speculated_accepted_tokens": answer.speculated_accepted,
        "reuse": asdict(answer.reuse),
        "visual_tokens": answer.visual_tokens,
        "num_kept": answer.num_kept(),
        "budget": answer.budget,
        "tiles": answer.tiles,
        "tiles_skipped": answer.tiles_skipped,
        "guidance": pruning.source if pruning is not None else None,
        "prune_layer": pruning.prune_layer if pruning is not None else None,
        "retention_ratio": answer.retention_ratio(),
        "average_retention": answer.average_retention(),
        "keep_index": answer.kept.tolist() if answer.kept is not None else None,
        "clips": [
            {
                "frames": shown.indices,
                "seconds": shown.seconds,
                "kept": answer.frames_kept(number),
            }
            for number, shown in enumerate(answer.clips)
        ],
        "decision": None
        if decision is None
        else {
            "criterion": decision.criterion,
            "value": decision.value,
            "exit_threshold": exit.exit_threshold,
            "confidence": decision.confidence,
            "consistency": decision.consistency,
        },
        "tokens": tokens,
        "seconds": answer.seconds,
        "picture": None if picture is None else str(picture),
    }


def _reason(answer: Answer) -> str:
    if answer.decision is None:
        return "early exit is off"
    return "early exit" if answer.early_exit else "the small one was not sure"


def _visual_tokens(answer: Answer) -> str:
    if not answer.visual_tokens:
        return "none, as there is no picture or clip"
    if answer.guidance is None:
        return f"all {answer.visual_tokens} kept"
    source, share = answer.guidance.source, answer.guidance.retention_share
    by = "" if source is GuidanceSource.SMALL else f" · guidance {source}"
    reasons = {
        Budget.RATIO: "",
        Budget.SHARE: f", whose importance is at least {share} of the largest",
        Budget.LEAST: ", the fewest of a question",
        Budget.MOST: ", the most of a question",
    }
    why = "" if answer.budget is None else reasons[answer.budget]
    skipped = f" · {answer.tiles_skipped} of {answer.tiles} tiles not encoded" if answer.tiles_skipped else ""
    return (
        f"{answer.num_kept()} of {answer.visual_tokens} kept from layer {answer.guidance.prune_layer} on{why}"
        f" · average retention {answer.average_retention():.1%}{skipped}{by}"
    )
