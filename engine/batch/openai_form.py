"""Lines of OpenAI's batch files: a chat completion's request each, and its answer or what is wrong."""

from dataclasses import dataclass
from typing import Any

from engine.batch.tally import Tally, tally_of
from engine.batch.terms import BadLine, Reply, Terms, bad_line
from engine.runtime.answer import Answer
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.serve.http.chat import read_chat
from engine.serve.http.completion import Completion
from engine.serve.http.errors import Refusal, refusal_of
from engine.serve.http.reader import Limits

MEMBERS = ("custom_id", "method", "url", "body")
METHOD, URL = "POST", "/v1/chat/completions"


@dataclass(frozen=True)
class ChatLine:
    """See `terms.LineRequest`."""

    question: Question
    pictures: tuple[str, ...]
    clips: tuple[str, ...]
    name: str
    number: int
    completion: Completion

    def answered(self, answer: Answer, pipeline: SglPipeline) -> Reply:
        completion = self.completion.whole(answer, pipeline)
        completion.sgl.seconds, completion.sgl.reuse = {}, {}  # these differ each time
        return _reply(self.name, self.number, 200, completion.model_dump())

    def counted(self, answer: Answer) -> Tally:
        return tally_of(answer)

    def failed(self, error: Exception) -> Reply:
        return _refused(self.name, self.number, refusal_of(error))


def read_openai(value: dict[str, Any], number: int, terms: Terms) -> ChatLine:
    """Raises BadLine."""
    name = value.get("custom_id")
    if not isinstance(name, str):
        raise bad_line(number, "custom_id is missing, or no text; give the request a name")
    if unknown := [member for member in value if member not in MEMBERS]:
        raise bad_line(number, f"member {unknown[0]!r} is unknown; there are {', '.join(MEMBERS)}", name)
    if value.get("method") != METHOD or value.get("url") != URL:
        raise bad_line(number, f"method and url are not {METHOD} and {URL}, which alone are answered; give them", name)
    limits = Limits(terms.default, terms.max_pictures, terms.timeout, terms.image_hosts, terms.max_clips)
    try:
        request, asked = read_chat(value.get("body"), terms.model, limits)
        if request.stream:
            raise Refusal(400, "stream: answers of a file do not stream; leave it out", "stream")
    except Refusal as refusal:
        raise BadLine(_refused(name, number, refusal)) from None
    completion = Completion(
        request.model,
        asked.exit_threshold,
        request.logprobs,
        asked.return_importance,
        asked.return_kept,
        f"chatcmpl-{number}",
        terms.started,
    )
    return ChatLine(asked.question, asked.urls, asked.clip_urls, name, number, completion)


def _refused(name: str, number: int, refusal: Refusal) -> Reply:
    content = refusal.content()
    assert isinstance(content["error"], dict)
    error = content["error"] | {"message": f"line {number}: {refusal.message}", "line": number}
    return _reply(name, number, refusal.status, {"error": error})


def _reply(name: str, number: int, status: int, body: dict[str, Any]) -> Reply:
    response = {"status_code": status, "request_id": f"req_{number}", "body": body}
    return {"id": f"batch_req_{number}", "custom_id": name, "response": response, "error": None}
