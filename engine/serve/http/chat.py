"""A request for a chat completion, read and checked."""

from pydantic import ValidationError

from engine.serve.http.errors import Refusal, refusal_of
from engine.serve.http.reader import Asked, Limits, read_request
from engine.serve.http.request_schema import LIST, TEXT, ChatRequest

MESSAGES = {
    "extra_forbidden": "unknown parameter; leave it out",
    "model_type": "Input should be an object",
    "model_attributes_type": "Input should be an object",
    "dict_type": "Input should be an object",
}
"""Of kinds of errors, where the library's own speak of Python."""


def read_chat(value: object, model: str, limits: Limits) -> tuple[ChatRequest, Asked]:
    """value: as JSON has it. Raises Refusal."""
    try:
        request = ChatRequest.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None
    try:
        return request, read_request(request, model, limits)
    except ValueError as error:
        refusal = refusal_of(error)
        raise Refusal(
            400 if refusal.status == 422 else refusal.status, str(error), refusal.param, refusal.code
        ) from None


def _invalid(error: ValidationError) -> Refusal:
    """What is wrong first, by the name of its member."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = _place(first["loc"])
    message = MESSAGES.get(first["type"], first["msg"].removeprefix("Value error, "))
    return Refusal(400, f"{place}: {message}" if place else message, place or None, first["type"])


def _place(parts: tuple[int | str, ...]) -> str:
    """As OpenAI names it, without the kinds that were tried."""
    place = ""
    for before, part in zip(("", *parts), parts, strict=False):
        if isinstance(part, int):
            place += f"[{part}]"
        elif not isinstance(before, int) and part not in (TEXT, LIST):
            place += f".{part}" if place else part
    return place
