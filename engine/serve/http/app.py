"""The routes of the server."""

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from importlib import resources
from typing import Any

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import engine
from engine.errors import EngineError
from engine.runtime.ticket import Ticket
from engine.serve.http.completion import Completion
from engine.serve.http.desk import ClientGone, Desk, Served, encode
from engine.serve.http.errors import DRAINING, Refusal, refusal_of
from engine.serve.http.guard import Access, Guard, Receive, Scope, Send, client_of, read_body
from engine.serve.http.request_schema import ChatRequest
from engine.serve.http.response_schema import ChatChunk, ChatCompletion, ErrorResponse, ModelCard, ModelList

LARGE_BODY = 1 << 18
"""Bytes of a request that is read beside the loop."""
GONE_STATUS = 499
"""Of an answer that nobody waits for any more; seen by nobody but a log."""
SCRIPTS = ("api", "canvas", "element", "frames", "media", "overlay", "page", "report", "sheet")
PAGE = {"/": "index.html", "/page.css": "page.css"} | {f"/{script}.js": f"{script}.js" for script in SCRIPTS}
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src blob:; base-uri 'none'; frame-ancestors 'none'; "
    "form-action 'none'"
)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 408, 413, 415, 421, 422, 429, 500, 503, 504)
}
REQUEST_SCHEMA = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ChatRequest.model_json_schema()}}}
}


def make_app(served: Served, access: Access) -> tuple[Guard, Desk]:
    """The application, and its desk."""
    app = FastAPI(title="SGL engine", version=engine.__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    desk = Desk(served, access.max_body)
    _add_questions(app, desk, access)
    _add_operations(app, desk)
    _add_page(app)
    _add_errors(app)
    return Guard(app, access), desk


def _add_questions(app: FastAPI, desk: Desk, access: Access) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        response_model_exclude_none=False,
        responses=ERRORS | {200: {"content": {"text/event-stream": {}}}},
        openapi_extra=REQUEST_SCHEMA,
    )
    async def chat(request: Request) -> Response:
        with ExitStack() as held:
            hold = held.enter_context(desk.in_flight.hold(client_of(request.scope)))
            body = await read_body(request.receive, access.max_body, hold)
            held.enter_context(desk.in_flight.count())
            read = await to_thread.run_sync(desk.read, body) if len(body) > LARGE_BODY else desk.read(body)
            wanted, asked = read
            del body, read
            completion = Completion(
                desk.served.model, asked.exit_threshold, wanted.logprobs, asked.return_importance, asked.return_kept
            )
            streams = wanted.stream
            usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            del wanted
            try:
                ticket = held.enter_context(await desk.ask(asked, request.receive))
            except ClientGone:
                return Response(status_code=GONE_STATUS)
            # The pictures are in memory a second time by now.
            del asked
            if streams:
                # What is held is the stream's from here on.
                return EventStream(_events(desk, ticket, completion, request.receive, usage), held.pop_all())
            try:
                async for _ in desk.follow(ticket, request.receive):
                    pass
            except ClientGone:
                return Response(status_code=GONE_STATUS)
            return JSONResponse(completion.whole(ticket.result(), desk.served.pipeline).model_dump())

    @app.get("/v1/models", response_model=ModelList, responses={401: {"model": ErrorResponse}})
    async def models() -> ModelList:
        return ModelList(data=[ModelCard(id=desk.served.model, created=desk.served.created)])

    @app.get("/v1/models/{model:path}", response_model=ModelCard, responses={404: {"model": ErrorResponse}})
    async def model(model: str) -> ModelCard:
        if model != desk.served.model:
            raise Refusal(404, f"model {model[:80]!r} is not served here", "model", "model_not_found")
        return ModelCard(id=model, created=desk.served.created)


def _add_operations(app: FastAPI, desk: Desk) -> None:
    @app.get("/health", responses={503: {"model": ErrorResponse}})
    async def health(infer: bool = False) -> dict[str, str]:
        """infer: by an answer of both models."""
        if desk.is_draining:
            raise Refusal(503, DRAINING)
        if infer:
            try:
                await desk.infer()
            except EngineError as error:
                raise Refusal(503, f"a question was not answered ({error})") from None
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(desk.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": engine.__version__}


def _add_page(app: FastAPI) -> None:
    place = resources.files("engine.serve.http") / "page"
    for path, name in PAGE.items():
        content, kind = (place / name).read_bytes(), TYPES[name.rpartition(".")[2]]
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

        async def page(content: bytes = content, kind: str = kind, headers: dict[str, str] = headers) -> Response:
            return Response(content, media_type=kind, headers=headers)

        app.add_api_route(path, page, include_in_schema=False)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return error.response()

    @app.exception_handler(EngineError)
    async def not_answered(request: Request, error: EngineError) -> Response:
        return refusal_of(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return Refusal(400, f"{name}: {first['msg']}", name).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        said = f"{request.method} {request.url.path[:80]}: {error.detail}"
        return Refusal(error.status_code, said, headers=headers).response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal_of(error).response()


async def _events(
    desk: Desk, ticket: Ticket, completion: Completion, receive: Receive, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """An answer as server-sent events; an error is the last one."""
    yield _event(completion.first())
    async with aclosing(desk.follow(ticket, receive)) as pieces:
        async for piece in pieces:
            yield _event(completion.piece(piece))
    try:
        answer = ticket.result()
    except EngineError as error:
        yield encode(refusal_of(error).content())
        return
    yield _event(completion.last(answer, desk.served.pipeline))
    if include_usage:
        yield _event(completion.usage(answer))
    yield encode("[DONE]")


def _event(chunk: ChatChunk) -> bytes:
    content = chunk.model_dump(exclude_none=True)
    for choice in content["choices"]:
        choice.setdefault("finish_reason", None)
    return encode(content)


class EventStream(Response):
    """Sends events as they come; ends when the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], held: ExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientGone, OSError):
            pass
        finally:
            self._held.close()
