"""Write docs/sizing.md: published pairs on 1 to 8 GPUs, and the predicted latency of the largest InternVL2."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill

from engine.cli.build_progress import build_progress
from engine.cli.command_line import CommandParser, run_command
from engine.config import GuidanceConfig, ServingConfig
from engine.errors import EngineError
from engine.families import published, published_names
from engine.planning.chip import Chip
from engine.planning.fit import WORLD_SIZES, fit
from engine.planning.pair_plan import PairPlan, plan_pair, read_config
from engine.planning.plan_config import PlanConfig
from engine.planning.report import assumptions
from engine.planning.roofline import latency, sent_bytes
from engine.planning.workload import Workload
from engine.target import Precision
from engine.units import size_text

SMALL, LARGEST = "InternVL2-2B", "InternVL2-76B"
PAIRS = (
    ("Qwen2-VL-2B", "Qwen2-VL-7B"),
    ("Qwen2-VL-2B", "Qwen2-VL-72B"),
    ("Qwen2.5-VL-3B", "Qwen2.5-VL-32B"),
    ("Qwen2.5-VL-3B", "Qwen2.5-VL-72B"),
    ("LLaVA-OneVision-0.5B", "LLaVA-OneVision-7B"),
    ("LLaVA-OneVision-0.5B", "LLaVA-OneVision-72B"),
    ("InternVL2-2B", "LLaVA-OneVision-72B"),
)
"""Small and large of the other families, the paper's among them."""
CHIP = Chip()
WORKLOAD = Workload(tiles=13)
PRECISIONS = (Precision.BF16, Precision.INT8, Precision.INT4)
ANSWERS = (16, 128)
"""Tokens of a short and of a long answer."""
RETENTIONS = (0.64, 0.35, 0.09)
"""Average retentions of the paper's tables."""
EXITED = 0.4
"""Share of questions that end with the small model in the paper's latency table."""
OnProgress = Callable[[str, float], None]
Row = Sequence[str]


def plan_markdown(on_progress: OnProgress) -> str:
    """The whole file."""
    retentions = ", ".join(f"{value:.0%}" for value in RETENTIONS)
    parts = (
        "# Sizing",
        _fill(
            """Written by `python -m tools.sizing`; `sgl plan` prints the same for any pair and any question. Nothing
            here ran on a GPU: sizes are counted from the declared graphs. Tests hold them to a built miniature: weight
            files of every rank and KV buffers to the byte, activations to 1 % of a run that keeps each value until its
            last use, and to a quarter of the scratch memory that TensorRT-RTX settles on when it compiles."""
        ),
        "## Memory of each GPU, and what fits",
        _fill(
            f"""In bf16. A question has one picture of {WORKLOAD.tiles} tiles, {WORKLOAD.text_tokens} tokens of text and
            an answer of {WORKLOAD.new_tokens}; of its visual tokens {GuidanceConfig.retention_ratio:.0%} are kept from
            the prune layer K on. A GPU has {size_text(CHIP.memory)} ({CHIP.name}), of which {size_text(CHIP.reserve)}
            are left to the driver and the libraries."""
        ),
        _fill(
            f""""language" to "activations" are of the large model on every rank, for one question; "rank 0" adds the
            small model, and {size_text(2 * ServingConfig.feature_cache)} of visual features that both keep. The
            vision encoder is whole on each rank. "At once" are such questions; "context" is the longest single question
            with its answer (* the most that both models were published for). "Prompt" and "token" are what each rank
            sends for a prompt and for each token after it. KV buffers are as long as such questions need; prompts are
            fed at most two at a time, as TensorRT engines are built for."""
        ),
        f"### InternVL2, guided by {SMALL}",
        _memory(["size"], {(name,): (SMALL, name) for name in published_names() if _is_internvl(name)}, on_progress),
        "### The other families",
        _fill(
            f"""The same question: Qwen2-VL and Qwen2.5-VL get one picture of as many pixels, which are as many visual
            tokens ({_visual_tokens(PAIRS[0][1])}); LLaVA-OneVision makes {_visual_tokens(PAIRS[-1][1])} rows of its
            tiles, before it leaves out what lies beside the picture or is more than nine tiles show."""
        ),
        _memory(["small", "large"], {pair: pair for pair in PAIRS}, on_progress),
        f"## {LARGEST}: predicted latency, not measured",
        _fill(
            f"""Seconds for one such question: pictures, prompt, and an answer of {ANSWERS[0]} or of {ANSWERS[1]}
            tokens. "Alone" is the large model without guidance and early exit; the other columns are {SMALL} and then
            the large model, at an average retention of {retentions}; the last one lets {EXITED:.0%} of the questions
            exit early at {RETENTIONS[0]:.0%}. The consistency pass is not counted. int8 and int4 are of weights only.
            This is {assumptions(CHIP)}. The paper, on two GPUs of its own, measured 3.02 s alone and 1.73 s (1.75x) in
            the setting of the last column."""
        ),
        _latency(on_progress),
    )
    return "\n\n".join(parts) + "\n"


def _is_internvl(name: str) -> bool:
    return name.startswith("InternVL2-")


def _visual_tokens(name: str) -> str:
    return f"{WORKLOAD.visual_tokens(read_config(published(name))):,}"


def _memory(names: Sequence[str], pairs: Mapping[Sequence[str], tuple[str, str]], on_progress: OnProgress) -> str:
    """names: heads of the first cells. pairs: small and large by those cells."""
    head = [*names, "GPUs", "language", "vision", "KV below K", "KV from K on", "activations", "rank 0"]
    head += ["at once", "context", "prompt", "token"]
    rows: list[Row] = []
    for cells, (small, large) in pairs.items():
        for index, world_size in enumerate(WORLD_SIZES):
            config = PlanConfig(published(small), published(large), world_size=world_size)
            rows.append((*cells, str(world_size), *_memory_cells(config)))
            on_progress(large, (index + 1) / len(WORLD_SIZES))
    return _table(head, rows)


def _memory_cells(config: PlanConfig) -> Row:
    try:
        plan = plan_pair(config)
    except EngineError as error:
        return (str(error).split(": ", 1)[1].split(";")[0], *[""] * 9)
    memory = plan.memory(WORKLOAD, rank=0)
    large = memory.large
    sizes = (large.language, large.vision, large.kv_full, large.kv_pruned, large.activations, memory.total())
    sent = [sent_bytes(call(WORKLOAD), config.world_size) for call in (plan.large.prefill, plan.large.decode)]
    return (*map(size_text, sizes), *_fit_cells(plan), *(size_text(round(value)) if value else "–" for value in sent))


def _fit_cells(plan: PairPlan) -> Row:
    missing = plan.memory(WORKLOAD, rank=0).total() - CHIP.usable()
    if missing > 0:
        return (f"does not fit: {size_text(missing)} too much", "")
    found = fit(plan, WORKLOAD, CHIP.usable())
    return (f"{found.batch:,}", f"{found.context:,}" + "*" * found.context_of_models)


def _latency(on_progress: OnProgress) -> str:
    head = ["GPUs", "weights", "answer", "alone", *(f"{value:.0%}" for value in RETENTIONS)]
    head.append(f"{RETENTIONS[0]:.0%}, {EXITED:.0%} exit")
    settings = [(world_size, precision) for world_size in WORLD_SIZES[1:] for precision in PRECISIONS]
    rows: list[Row] = []
    for index, (world_size, precision) in enumerate(settings):
        config = PlanConfig(published(SMALL), published(LARGEST), precision=precision, world_size=world_size)
        rows += [(str(world_size), precision, *cells) for cells in _latency_cells(config)]
        on_progress("latency", (index + 1) / len(settings))
    return _table(head, rows)


def _latency_cells(config: PlanConfig) -> list[Row]:
    plans = [
        plan_pair(replace(config, guidance=GuidanceConfig(average_retention=retention))) for retention in RETENTIONS
    ]
    first = plans[0]
    missing = first.memory(WORKLOAD, rank=0).total() - CHIP.usable()
    if missing > 0:
        return [("", f"does not fit: {size_text(missing)} too much", "", "", "", "")]
    rows: list[Row] = []
    for tokens in ANSWERS:
        alone = latency(first.large.unpruned(), WORKLOAD, CHIP).answer(tokens)
        small = latency(first.small, WORKLOAD, CHIP).answer(tokens)
        guided = [latency(plan.large, WORKLOAD, CHIP).answer(tokens) for plan in plans]
        times = [*(small + large for large in guided), small + (1 - EXITED) * guided[0]]
        rows.append((str(tokens), f"{alone:.2f}", *(f"{time:.2f} ({alone / time:.2f}x)" for time in times)))
    return rows


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _fill(paragraph: str) -> str:
    return fill(" ".join(paragraph.split()), 120)


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="python -m tools.sizing", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/sizing.md"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)

    def command() -> None:
        with build_progress(quiet=False) as on_progress:
            text = plan_markdown(on_progress)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"{arguments.out}: {len(text.splitlines())} lines")

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
