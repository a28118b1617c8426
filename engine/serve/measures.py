"""What is measured of questions at every door: declared here once, handed to whatever exposes it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from engine.errors import ImageError, Overloaded, QuestionCancelled, QuestionTimedOut, RequestError
from engine.runtime.answer import Answer, AnsweredBy
from engine.runtime.question import Stage
from engine.runtime.scheduler import Load

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
PREFIX = "sgl_"


class Failure(StrEnum):
    """Why a question was not answered."""

    REQUEST = "request"
    OVERLOADED = "overloaded"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"
    MODEL = "model"

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        if isinstance(error, RequestError | ImageError):
            return cls.REQUEST
        kinds = {Overloaded: cls.OVERLOADED, QuestionCancelled: cls.CANCELLED, QuestionTimedOut: cls.TIMED_OUT}
        return next((kind for error_type, kind in kinds.items() if isinstance(error, error_type)), cls.MODEL)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """buckets: upper ends, of a histogram. label: what its values are told apart by, and which there are."""

    name: str
    description: str
    kind: Kind = Kind.COUNTER
    buckets: tuple[float, ...] = ()
    label: str | None = None
    values: tuple[str, ...] = ()


METRICS = (
    Metric("questions_total", "Questions that arrived"),
    Metric("answers_total", "Questions that were answered"),
    Metric("early_exits_total", "Questions that the small model answered"),
    Metric("visual_tokens_total", "Visual tokens that the model that answered saw"),
    Metric("visual_tokens_kept_total", "Visual tokens that it used to the end"),
    Metric("tiles_total", "Tiles of their pictures that the large model could have been shown"),
    Metric("tiles_skipped_total", "Those of them that it was not, as no layer was to see anything of them"),
    Metric("tiles_wanted_total", "Tiles whose features either model wanted"),
    Metric("tiles_known_total", "Those of them that an earlier question had left"),
    Metric("prompt_tokens_total", "Tokens of prompts, of both models"),
    Metric("prompt_tokens_known_total", "Those of them that an earlier question had left"),
    Metric("generated_tokens_total", "Tokens of answers"),
    Metric("drafted_tokens_total", "Tokens of the small model that the large one checked"),
    Metric("accepted_tokens_total", "Those of them that it would have said, each of which spared it a step"),
    Metric("speculated_tokens_total", "Drafted tokens that followed from what the large model had said"),
    Metric("speculated_accepted_tokens_total", "Those of them that it would have said"),
    Metric("pieces_total", "Pieces of answers, as they came"),
    Metric("failures_total", "Questions that ended in an error", label="kind", values=tuple(Failure)),
    Metric("running", "Questions that are being answered", Kind.GAUGE),
    Metric("waiting", "Questions that wait, also for their pictures", Kind.GAUGE),
    Metric("kv_memory_used_bytes", "Keys and values that running questions may fill", Kind.GAUGE),
    Metric("kv_memory_free_bytes", "Keys and values that are left for others", Kind.GAUGE),
    Metric("kv_memory_kept_bytes", "Of these, what is kept for later questions until others need it", Kind.GAUGE),
    Metric("first_token_seconds", "From a question to the first piece of its answer", Kind.HISTOGRAM, SECONDS),
    Metric("between_tokens_seconds", "Between tokens of an answer, its mean", Kind.HISTOGRAM, TOKEN_SECONDS),
    Metric(
        "stage_seconds",
        "From the start to the end of a stage of an answer",
        Kind.HISTOGRAM,
        SECONDS,
        "stage",
        tuple(Stage),
    ),
)


class Sink(Protocol):
    """Where numbers go, by the name of their metric and the value of its label."""

    def count(self, name: str, amount: float = 1, value: str = "") -> None: ...

    def observe(self, name: str, number: float, value: str = "") -> None: ...

    def set(self, name: str, number: float) -> None: ...


def count_answer(sink: Sink, answer: Answer, first: float, last: float) -> None:
    """first, last: seconds from the question to the first and the last piece of its answer."""
    counted = {
        "answers_total": 1,
        "early_exits_total": int(answer.early_exit),
        "visual_tokens_total": answer.visual_tokens,
        "visual_tokens_kept_total": answer.num_kept(),
        "tiles_total": answer.tiles if answer.answered_by is AnsweredBy.LARGE else 0,
        "tiles_skipped_total": answer.tiles_skipped,
        "tiles_wanted_total": answer.reuse.tiles,
        "tiles_known_total": answer.reuse.tiles_known,
        "prompt_tokens_total": answer.reuse.tokens,
        "prompt_tokens_known_total": answer.reuse.tokens_known,
        "generated_tokens_total": len(answer.token_ids),
        "drafted_tokens_total": answer.drafted,
        "accepted_tokens_total": answer.accepted,
        "speculated_tokens_total": answer.speculated,
        "speculated_accepted_tokens_total": answer.speculated_accepted,
    }
    for name, amount in counted.items():
        sink.count(name, amount)
    sink.observe("first_token_seconds", first)
    if answer.answered_by is AnsweredBy.LARGE and len(answer.token_ids) > 1:
        sink.observe("between_tokens_seconds", (last - first) / (len(answer.token_ids) - 1))
    for stage, seconds in answer.seconds.items():
        sink.observe("stage_seconds", seconds, stage)


def count_failure(sink: Sink, error: Exception) -> None:
    sink.count("failures_total", value=Failure.of(error))


def set_load(sink: Sink, load: Load, in_flight: int) -> None:
    """in_flight: questions that have not ended."""
    running = min(load.running, in_flight)
    sink.set("running", running)
    sink.set("waiting", in_flight - running)
    sink.set("kv_memory_used_bytes", load.kv_memory_used)
    sink.set("kv_memory_free_bytes", 0 if load.kv_memory is None else load.kv_memory - load.kv_memory_used)
    sink.set("kv_memory_kept_bytes", load.kv_memory_kept)
