"""Every benchmark by its name."""

from engine.errors import RequestError
from engine.evaluation.benchmark import Benchmark
from engine.evaluation.chartqa import CHARTQA
from engine.evaluation.docvqa import DOCVQA
from engine.evaluation.gqa import GQA
from engine.evaluation.longvideobench import LONGVIDEOBENCH
from engine.evaluation.mmbench import MMBENCH
from engine.evaluation.mmbench_video import MMBENCH_VIDEO
from engine.evaluation.mme import MME
from engine.evaluation.mmvet import MMVET
from engine.evaluation.own import OWN
from engine.evaluation.refcoco import REFCOCO
from engine.evaluation.seed import SEED
from engine.evaluation.textvqa import TEXTVQA
from engine.evaluation.videomme import VIDEOMME

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        OWN,
        TEXTVQA,
        CHARTQA,
        DOCVQA,
        GQA,
        *REFCOCO,
        SEED,
        MMBENCH,
        MMVET,
        MME,
        VIDEOMME,
        LONGVIDEOBENCH,
        MMBENCH_VIDEO,
    )
}


def by_name(name: str) -> Benchmark:
    """Raises RequestError."""
    if name not in BENCHMARKS:
        raise RequestError(f"there is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
