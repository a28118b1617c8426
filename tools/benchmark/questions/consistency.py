"""What the consistency pass adds to the small model's first inference."""

from engine.config import ExitConfig, ExitCriterion, GuidanceConfig, SamplingConfig
from engine.runtime.answer import Answer
from engine.runtime.question import Stage
from tools.benchmark.bench import Bench
from tools.benchmark.interleave import Effort, Spread, spread
from tools.benchmark.pair import QUESTION, build_engines, draw_picture
from tools.benchmark.report import Row, Section, Unit
from tools.benchmark.runners import LoadPipeline
from tools.benchmark.worker import Worker

TARGET = 0.05
EFFORT = Effort(loads=2, runs=3)
EXIT = ExitConfig(criterion=ExitCriterion.CONSISTENCY, exit_threshold=1e-300)
"""Always runs the pass and always exits, so that the large model stays out of it."""
VISION = (Stage.SMALL_VISION,)
LANGUAGE = (Stage.SMALL_PREFILL, Stage.SMALL_DECODE)


def measure_consistency(bench: Bench) -> Section:
    engines, picture = build_engines(bench), draw_picture(bench)
    sampling = SamplingConfig(max_new_tokens=bench.size.answer_tokens)
    guidance = GuidanceConfig(enabled=False)
    effort, report = bench.effort(EFFORT), bench.progress("consistency")
    answers: list[Answer] = []
    for load in range(effort.loads):
        with Worker(LoadPipeline(engines, bench.threads)) as worker:
            for turn in range(-1, effort.runs):
                asked = worker.call("answer", picture, QUESTION, guidance=guidance, exit=EXIT, sampling=sampling)
                if turn >= 0:  # the first round loads the model
                    answers.append(asked.result.answer)
                report((load + (turn + 2) / (effort.runs + 1)) / effort.loads)
    last = answers[-1]
    stages = ", ".join(f"{stage} {1000 * _median(answers, stage):,.0f} ms" for stage in last.seconds)
    rows = [
        Row("share of vision, prefill and decode", _share(answers, VISION + LANGUAGE), TARGET, Unit.SHARE, stages),
        Row("share of prefill and decode alone", _share(answers, LANGUAGE), unit=Unit.SHARE),
    ]
    return Section(
        "Consistency pass",
        "Time of the pass over the time of the small model's first inference, both as `SglPipeline.answer` reports "
        f"them: {last.prompt_tokens:,} prompt tokens, {last.visual_tokens:,} of them visual, of which the pass keeps "
        f"{EXIT.num_kept(last.visual_tokens)}; {len(last.token_ids)} tokens answered. The paper reports under 10 %.",
        rows,
    )


def _share(answers: list[Answer], stages: tuple[Stage, ...]) -> Spread:
    shares = [a.seconds[Stage.CONSISTENCY] / sum(a.seconds[stage] for stage in stages) for a in answers]
    return spread(shares)


def _median(answers: list[Answer], stage: str) -> float:
    return spread([answer.seconds[stage] for answer in answers]).median
