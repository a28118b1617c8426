"""What is wrong, in the shape and with the status of OpenAI's errors."""

from collections.abc import Mapping
from types import MappingProxyType

from fastapi.responses import JSONResponse

from engine.errors import EngineError
from engine.json_schema import BadSchema
from engine.runtime.words import short
from engine.serve.http.reader import ModelNotFound
from engine.serve.measures import Failure

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
LONGEST = 1000
"""Characters of a message."""
RETRY_SECONDS = 1
"""After which a question that was refused may be asked again."""
DRAINING = "the server answers its last questions and takes no more; ask another server"
STATUSES = {
    Failure.REQUEST: 422,
    Failure.OVERLOADED: 429,
    Failure.CANCELLED: 503,
    Failure.TIMED_OUT: 504,
    Failure.MODEL: 500,
}
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 422: "cannot_be_served", 429: "overloaded"}


class Refusal(Exception):
    """A request that ends in an error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        """param: the member that is wrong."""
        super().__init__(message)
        # What was sent may stand in both, and is as long as somebody likes.
        self.status, self.message, self.code = status, short(message, LONGEST), code
        self.param = None if param is None else short(param)
        self.headers = dict(headers)

    def content(self) -> dict[str, object]:
        kind = TYPES.get(self.status, "server_error")
        code = self.code or CODES.get(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    def response(self) -> JSONResponse:
        retry = {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        return JSONResponse(self.content(), self.status, {**retry, **self.headers})


def refusal_of(error: Exception) -> Refusal:
    """422 is for what is well-formed, and that this engine cannot answer."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ModelNotFound):
        return Refusal(404, str(error), "model", "model_not_found")
    if isinstance(error, BadSchema):
        return Refusal(400, str(error), "response_format", "invalid_schema")
    said = str(error) if isinstance(error, EngineError) else f"the server failed ({error!r}); see its log"
    return Refusal(STATUSES[Failure.of(error)], said)
