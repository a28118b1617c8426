"""The questions of the benchmark by name, in the order of docs/benchmarks.md."""

from collections.abc import Callable

from tools.benchmark.bench import Bench
from tools.benchmark.questions.consistency import measure_consistency
from tools.benchmark.questions.doors import measure_doors
from tools.benchmark.questions.end_to_end import measure_end_to_end
from tools.benchmark.questions.int8 import measure_int8
from tools.benchmark.questions.memory import measure_memory
from tools.benchmark.questions.peers import measure_peers
from tools.benchmark.questions.plans import measure_plans
from tools.benchmark.questions.scores import measure_scores
from tools.benchmark.questions.serving import measure_serving
from tools.benchmark.questions.tensor_parallel import measure_tensor_parallel
from tools.benchmark.questions.towers import measure_towers
from tools.benchmark.questions.video import measure_video
from tools.benchmark.report import Section

QUESTIONS: dict[str, Callable[[Bench], Section]] = {
    "end_to_end": measure_end_to_end,
    "scores": measure_scores,
    "peers": measure_peers,
    "int8": measure_int8,
    "towers": measure_towers,
    "consistency": measure_consistency,
    "memory": measure_memory,
    "tensor_parallel": measure_tensor_parallel,
    "plans": measure_plans,
    "serving": measure_serving,
    "doors": measure_doors,
    "video": measure_video,
}
