"""Peak memory of the pair in one process, next to the large model's alone."""

from engine.config import ExitConfig, ExitCriterion, GuidanceConfig, SamplingConfig
from engine.engine_directory import read_manifest
from engine.manifest import Manifest
from engine.runtime.answer import Answer
from engine.runtime.executor import HostBuffers
from engine.runtime.prompt import Need
from engine.runtime.slots import Slots
from tools.benchmark.bench import Bench
from tools.benchmark.interleave import Effort, spread
from tools.benchmark.pair import QUESTION, build_engines, draw_picture
from tools.benchmark.report import Row, Section, Unit
from tools.benchmark.runners import LoadPipeline, MeteredAnswer
from tools.benchmark.worker import Worker

EFFORT = Effort(loads=2, runs=1)
GUIDANCE = GuidanceConfig()
NEVER_EXIT = ExitConfig(criterion=ExitCriterion.CONSISTENCY, exit_threshold=1.0)
"""Everything runs: both models and the consistency pass."""
SGL, ALONE = "small and large", "large alone"
CASES = {
    ALONE: {"guidance": GuidanceConfig(enabled=False), "exit": ExitConfig(enabled=False)},
    SGL: {"guidance": GUIDANCE, "exit": NEVER_EXIT},
}


def measure_memory(bench: Bench) -> Section:
    engines, picture = build_engines(bench), draw_picture(bench)
    sampling, report = SamplingConfig(max_new_tokens=bench.size.decode_tokens), bench.progress("memory")
    loads = bench.effort(EFFORT).loads
    measured: dict[str, list[MeteredAnswer]] = {name: [] for name in CASES}
    for load in range(loads):
        for index, (name, settings) in enumerate(CASES.items()):
            report((load + index / len(CASES)) / loads)
            with Worker(LoadPipeline(engines, bench.threads)) as worker:
                reply = worker.call("answer", picture, QUESTION, sampling=sampling, **settings)
                measured[name].append(reply.result)
    report(1.0)
    rows = []
    for what, peak in (
        ("peak resident memory", lambda answer: answer.peak_bytes),
        ("of it anonymous, at its own peak", lambda answer: answer.peak_anonymous_bytes),
    ):
        peaks = {name: [peak(answer) for answer in answers] for name, answers in measured.items()}
        rows += [Row(f"{what}: {name}", spread(values), unit=Unit.MIB) for name, values in peaks.items()]
        ratios = [pair / alone for pair, alone in zip(peaks[SGL], peaks[ALONE], strict=True)]
        rows.append(Row(f"{what}: both over large alone", spread(ratios), note="the paper: 1.03 to 1.05, 2B with 26B"))
    manifest, sgl = read_manifest(engines), measured[SGL][0].answer
    rows += _kv_rows(manifest, sgl)
    models = {name: _weight_bytes(manifest, name) for name in manifest.models}
    return Section(
        "Peak memory",
        "One question in a fresh process that loads each model when it needs it and keeps it: first the large model "
        "alone and unpruned, then the small model with scores and consistency pass followed by the large one pruned. "
        f"{sgl.prompt_tokens:,} prompt tokens, {sgl.visual_tokens:,} visual; float32.",
        rows,
        [
            "Weights on disk: "
            + ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in models.items())
            + ". The overhead is mostly the small model's weights, so it follows the ratio of the two models: "
            f"here {models['small'] / models['large']:.2f}, in the paper's pair 0.08.",
            "Pages of the engine files that are mapped count as resident but not as anonymous; the system takes them "
            "back when it needs to.",
        ],
    )


def _kv_rows(manifest: Manifest, answer: Answer) -> list[Row]:
    """Bytes of the large model's KV cache for this question, pruned and not."""
    model, guidance = manifest.models["large"], answer.guidance
    assert guidance is not None and guidance.prune_layer is not None, "the large model ran pruned"
    config, new = model.config.language, len(answer.token_ids)
    dropped = answer.visual_tokens - answer.num_kept()
    full = answer.prompt_tokens + new
    sizes = [full - dropped * (point >= guidance.prune_layer) for point in (0, *model.prune_layers)]
    slots = Slots(HostBuffers(), config, config.num_kv_heads, model.prune_layers, places=1)
    pruned, unpruned = slots.nbytes(Need(tuple(sizes))), slots.nbytes(Need((full,) * len(sizes)))
    what = f"KV cache of the large model, {guidance.retention_ratio:.0%} kept from layer {guidance.prune_layer}"
    return [
        Row("KV cache of the large model, nothing pruned", spread([unpruned]), unit=Unit.MIB),
        Row(what, spread([pruned]), unit=Unit.MIB, note=f"{pruned / unpruned:.3f} of unpruned"),
    ]


def _weight_bytes(manifest: Manifest, model: str) -> int:
    return sum(
        record.bytes
        for component in manifest.components.values()
        for file, record in component.files.items()
        if file.startswith(f"{model}/") and file.endswith(".weights")
    )
