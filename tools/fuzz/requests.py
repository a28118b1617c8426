"""Requests: tensors as the served model gets them, and arguments of any type, shape and size as a program gives them.

A case is JSON; what JSON does not know is an object that says what it is `as` (`values`).
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np

from engine.config import ExitCriterion as Criterion
from engine.config import GuidanceSource, ScoreRows
from engine.errors import EngineError, ModelFailed
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.serve.triton.inquiry import DTYPES, Reader
from engine.serve.triton.reply import answer_outputs
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import INPUTS
from tools.fuzz.mutate import HUGE, ODD, spoil_bytes
from tools.fuzz.stand_in import PRUNE_LAYERS, stand_in_pipeline
from tools.fuzz.urls import network
from tools.fuzz.values import NUMBERS, photo, revive

NAME = "requests"
SCHEDULER = "engine.runtime.scheduler"
PATIENCE = 60.0
"""Seconds of a question that is waited for; a case that hangs is found by the driver."""

TEXTS = ["What?", "a cab", " \n", "\ud800", "x\0y", "a" * 3000, "<image>", "<image> or <image>", "<IMG_CONTEXT>"]
TEXTS += ["<|im_end|>", "</s>", "<s>", "<img>a</img>", "<|x|>", "\u202e\u2028é𝒳", "<0x0A>", "▁", "ａ\u0301"]
URLS = ["data:image/png;base64,AAAA", "data:,x", "http://pictures.example/a", "http://private.example/", "a.png", "\0"]


# Cases.


def make(seed: int) -> Any:
    rng = random.Random(seed)
    return _tensors(rng) if rng.random() < 0.4 else _call(rng)


def _tensors(rng: random.Random) -> dict[str, Any]:
    """Of a request: names, types, shapes and values at random, most of them right."""
    tensors: dict[str, Any] = {}
    for declared in [INPUTS[0]] * (rng.random() < 0.95) + rng.sample(INPUTS, rng.randrange(4)):
        shape = [size if size > 0 else rng.randrange(4) for size in (1, *declared.dims)]
        if rng.random() < 0.05:
            shape = [rng.randrange(3) for _ in range(rng.randrange(6))]
        kind = declared.kind if rng.random() < 0.95 else rng.choice([*DTYPES])
        values = [_element(rng, declared.name, kind) for _ in range(max(1, min(6, int(np.prod(shape)))))]
        name = declared.name if rng.random() < 0.98 else rng.choice(["images", "", "\0", "text_inpu"])
        tensors[name] = {"kind": kind, "shape": shape, "values": values}
    parameters = rng.choice(["", "{}"] * 9 + ['{"temprature": 0.5}', '{"a": {"b": []}}'])
    return {"tensors": tensors, "parameters": parameters, "streams": rng.random() < 0.3}


def _element(rng: random.Random, name: str, kind: str) -> Any:
    if kind == "STRING":
        if name == "image_bytes_input" and rng.random() < 0.8:
            data = photo() if rng.random() < 0.6 else spoil_bytes(rng, photo())
            return data.decode("latin-1")
        text = rng.choice(URLS if "url" in name else TEXTS if rng.random() < 0.5 else ["What?"])
        return text.encode("utf-8", "surrogatepass").decode("latin-1")
    if kind == "FP32":
        return rng.choice([0.5, 0.5, 1.0, 1.0, 0.0, -1.0, 1e-45, float("nan"), float("inf"), -float("inf"), 3e38])
    if kind == "BOOL":
        return rng.choice([True, False])
    limits = np.iinfo(DTYPES[kind])
    return rng.choice([0, 1, 1, 2, 5, 40, int(limits.min), int(limits.max)])


def _call(rng: random.Random) -> dict[str, Any]:
    """Of a function of the pipeline, with its arguments."""
    how = rng.choice(list(CALLS))
    if how in ("answer", "submit"):
        return {"call": how, "arguments": _arguments(rng)}
    questions = [{"as": "question", "of": _arguments(rng)} for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.15:
        questions[rng.randrange(len(questions))] = _odd(rng)
    return {"call": how, "arguments": {"questions": questions if rng.random() < 0.95 else _odd(rng)}}


def _arguments(rng: random.Random) -> dict[str, Any]:
    """Of a question: good ones, of which some are then replaced by anything."""
    arguments: dict[str, Any] = {
        "images": [_image(rng) for _ in range(rng.choice([0, 1, 1, 1, 2]))],
        "text": rng.choice(TEXTS) if rng.random() < 0.2 else "What?",
        "guidance": _config(rng, "guidance", GUIDANCE),
        "exit": _config(rng, "exit", EXIT),
        "sampling": _config(rng, "sampling", SAMPLING),
        "picture": _config(rng, "config", PICTURE),
        "videos": [_clip(rng) for _ in range(rng.choice([0, 0, 0, 0, 1]))],
        "video": _config(rng, "video", VIDEO),
        "history": [{"as": "turn", "of": [_text(rng), _text(rng)]} for _ in range(rng.choice([0, 0, 1, 2]))],
        "system": rng.choice([None, "Be short.", "", *TEXTS]),
        "timeout": rng.choice([None, None, 30, 1e9, 1e-9]),
        "on_text": rng.choice([None, None, {"as": "listener"}]),
    }
    arguments = {name: value for name, value in arguments.items() if name == "text" or rng.random() < 0.7}
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        names = ["images", "text", "history", "system", "timeout", "on_text", "picture", "sampling", "videos"]
        arguments[rng.choice(names)] = _odd(rng)
    return arguments


def _text(rng: random.Random) -> Any:
    return rng.choice(TEXTS if rng.random() < 0.3 else ["a cab", ""]) if rng.random() < 0.95 else _odd(rng)


def _image(rng: random.Random) -> Any:
    good: list[Any] = [{"as": "photo"}, {"as": "memory"}, {"as": "file"}, {"as": "picture", "of": [9, 300]}]
    good += [{"as": "picture", "of": [8, 8], "mode": mode} for mode in ("RGBA", "LA", "P", "1", "F", "I;16", "CMYK")]
    bad: list[Any] = [{"as": "array", "of": shape} for shape in ([4, 5, 3], [4, 5], [0, 3, 3], [2], [3, 3, 9], [])]
    bad += [{"as": "array", "of": [2, 2, 3], "kind": kind} for kind in ("float64", "int64", "O", "U1", "bool", "V2")]
    bad += [{"as": "path", "of": "/nowhere"}, "a.png", "\0", {"as": "bytes", "of": "GIF89a"}, _odd(rng)]
    return rng.choice(good if rng.random() < 0.85 else bad)


def _clip(rng: random.Random) -> Any:
    frames: Any = [{"as": "picture", "of": [9, 7]} for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.8:
        return {"as": "clip", "of": {"pictures": frames}}
    seconds = rng.choice([[0.0, 0.5, 2.0], [1.0, 0.0], [0.0] * 3, [float("nan")], [-5.0], ["a"], 7])
    frames = rng.choice([frames, [], [*frames, _image(rng)], "a.png", [_odd(rng)]])
    bad: list[Any] = [{"as": "path", "of": "/nowhere"}, "a.mp4", "\0", {"as": "bytes", "of": "GIF89a"}, _odd(rng)]
    return rng.choice([{"as": "clip", "of": {"pictures": frames, "seconds": seconds}}, *bad])


GOOD_RATIO = [0.05, 0.2, 0.5, 1.0]
GUIDANCE: dict[str, list[Any]] = {
    "enabled": [True, True, False],
    "source": [*map(str, GuidanceSource)],
    "retention_ratio": GOOD_RATIO,
    "prune_layer": [None, 0, *PRUNE_LAYERS],
    "average_retention": [None, None, 0.5, 0.9],
    "score_rows": [*map(str, ScoreRows)],
    "score_layers": GOOD_RATIO,
    "guide_max_new_tokens": [None, 1, 3],
}
VIDEO: dict[str, list[Any]] = {
    "frames": [None, 1, 2],
    "fps": [None, None, None, 0.5],
    "max_frames": [None, 1, 3],
}
EXIT: dict[str, list[Any]] = {
    "enabled": [True, True, False],
    "exit_threshold": [0.0, 0.5, 0.9, 2.0],
    "criterion": [*map(str, Criterion)],
    "normalise": ["product", "mean"],
    "consistency_retention": GOOD_RATIO,
}
SAMPLING: dict[str, list[Any]] = {
    "max_new_tokens": [1, 2, 5, 9],
    "temperature": [0.0, 1.0, 1e-300, 1e300],
    "top_p": [1.0, 0.5, 1e-9],
    "top_k": [0, 1, 5, (1 << 31) - 1],
    "seed": [0, 7, (1 << 64) - 1],
    "stop": [[], ["a"], ["x", "ab"]],
}
PICTURE: dict[str, list[Any]] = {"auto_orient": [True, False], "background": [None, [0, 1, 255]]}


def _config(rng: random.Random, kind: str, fields: dict[str, list[Any]]) -> Any:
    if kind != "sampling" and rng.random() < 0.3:
        return {"as": kind, "of": {}} if kind in ("config", "video") else None
    values = {name: rng.choice(choices) for name, choices in fields.items() if rng.random() < 0.4}
    if kind == "sampling":
        values.setdefault("max_new_tokens", rng.choice(fields["max_new_tokens"]))
    if rng.random() < 0.1:
        name = rng.choice(list(fields))
        values[name] = rng.choice([_odd(rng), [_odd(rng)], {"as": "tuple", "of": [_odd(rng)] * 3}])
    return {"as": kind, "of": values}


def _odd(rng: random.Random) -> Any:
    """A value of any type."""
    number = rng.choice([0, 1, 3, 255, -1, 0.5, float("nan"), float("inf")])
    strange: list[Any] = [{"as": name, "of": number} for name in NUMBERS]
    strange += [{"as": name} for name in ("object", "function", "set", "generator", "photo", "memory", "file", "turn")]
    strange += [
        {"as": "bytes", "of": "a\xff"},
        {"as": "path", "of": "a"},
        {"as": "fraction", "of": 5},
        {"as": "power", "of": 5000},
    ]
    strange += [{"as": "array", "of": [2]}, {"as": "tuple", "of": ["a"]}, [["a", "b"]], [{"as": "turn", "of": [1, 2]}]]
    return rng.choice([rng.choice(strange), rng.choice(ODD), rng.choice(HUGE), rng.choice(TEXTS)])


# What is done with them.


def run(case: Any) -> None:
    """As the server or a program does it; a fault that the pipeline keeps to itself is raised here."""
    pipeline = stand_in_pipeline()
    with faults_of_the_loop() as faults:
        try:
            if "call" in case:
                arguments = case.get("arguments")
                CALLS.get(case["call"], _submit)(pipeline, arguments if isinstance(arguments, dict) else {})
            else:
                _request(pipeline, case)
        except ModelFailed as error:
            raise (faults[0] if faults else AssertionError("a model failed")) from error
    if faults:
        raise faults[0]


def _request(pipeline: SglPipeline, case: Any) -> None:
    tensors = {name: _tensor(tensor) for name, tensor in case.get("tensors", {}).items()}
    streams = bool(case.get("streams"))
    if streams:
        tensors.setdefault("stream", np.array([[True]]))
    for name in ("return_importance", "return_log_probs"):
        tensors.setdefault(name, np.array([[True]]))
    with network(b"HTTP/1.0 200\r\n\r\npixels"):
        inquiry = Reader(_serving(), pipeline.manifest).read(tensors, case.get("parameters", ""))
        question = inquiry.question(inquiry.timeout)
    answer = pipeline.submit(question).result(PATIENCE)
    outputs = answer_outputs(answer, inquiry)
    assert all(len(tensor) == 1 for tensor in outputs.values())


@cache
def _serving() -> ServeConfig:
    return ServeConfig(options={"max_new_tokens": 5}, timeout=PATIENCE, allow_image_urls=True)


def _tensor(tensor: dict[str, Any]) -> np.ndarray:
    kind = DTYPES.get(tensor.get("kind", "STRING"), np.dtype(object))
    values = tensor.get("values") or [""]
    if kind.kind == "O":
        values = [value.encode("latin-1", "replace") if isinstance(value, str) else b"" for value in values]
    array = np.empty(int(np.prod(tensor.get("shape", [1, 1]))), kind)
    array[:] = [values[index % len(values)] for index in range(len(array))]
    return array.reshape(tensor.get("shape", [1, 1]))


def _answer(pipeline: SglPipeline, arguments: dict[str, Any]) -> None:
    values = {name: revive(value) for name, value in arguments.items()}
    answer = pipeline.answer(values.pop("images", ()), values.pop("text", "a"), **values)
    _check(answer)


def _submit(pipeline: SglPipeline, arguments: dict[str, Any]) -> None:
    with pipeline.submit(revive({"as": "question", "of": arguments})) as ticket:
        text = "".join(ticket)
        answer = ticket.result(PATIENCE)
    assert text == answer.text
    _check(answer)


def _together(call: str, pipeline: SglPipeline, arguments: dict[str, Any]) -> None:
    outcomes = [*getattr(pipeline, call)(revive(arguments.get("questions", [])))]
    for outcome in outcomes:
        if isinstance(outcome, ModelFailed):
            raise outcome
        assert isinstance(outcome, Answer | EngineError)
        if isinstance(outcome, Answer):
            _check(outcome)


CALLS: dict[str, Callable[[SglPipeline, dict[str, Any]], None]] = {
    "answer": _answer,
    "submit": _submit,
    "answer_each": partial(_together, "answer_each"),
    "answer_all": partial(_together, "answer_all"),
}


def _check(answer: Answer) -> None:
    answer.text.encode()
    assert len(answer.token_ids) == len(answer.probabilities) > 0
    assert all(0 <= probability <= 1.0001 for probability in answer.probabilities)
    assert answer.kept is None or 0 < len(answer.kept) <= answer.visual_tokens


@contextmanager
def faults_of_the_loop() -> Iterator[list[BaseException]]:
    """What its thread logs; whoever asks is told of a failed model only."""
    found: list[BaseException] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1] is not None:
                found.append(record.exc_info[1])

    logger, handler = logging.getLogger(SCHEDULER), Keep()
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
