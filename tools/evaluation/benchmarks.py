"""Every benchmark by its name."""

from engine.errors import RequestError
from tools.evaluation.benchmark import Benchmark
from tools.evaluation.chartqa import CHARTQA
from tools.evaluation.docvqa import DOCVQA
from tools.evaluation.gqa import GQA
from tools.evaluation.miniature import MINIATURE
from tools.evaluation.mmbench import MMBENCH
from tools.evaluation.mme import MME
from tools.evaluation.mmvet import MMVET
from tools.evaluation.refcoco import REFCOCO
from tools.evaluation.seed import SEED
from tools.evaluation.textvqa import TEXTVQA

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (MINIATURE, TEXTVQA, CHARTQA, DOCVQA, GQA, *REFCOCO, SEED, MMBENCH, MMVET, MME)
}


def by_name(name: str) -> Benchmark:
    """Raises RequestError."""
    if name not in BENCHMARKS:
        raise RequestError(f"there is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
