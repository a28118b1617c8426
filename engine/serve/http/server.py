"""The server's life: it starts, patiently listens, drains, and ends."""

import asyncio
import logging
import resource
import socket
import time
from dataclasses import dataclass
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.errors import EngineError, Setting
from engine.serve.http.app import make_app
from engine.serve.http.desk import Desk, Served
from engine.serve.http.errors import Refusal
from engine.serve.http.guard import Access

LOG = logging.getLogger("engine.serve.http")
RECEIVE_SECONDS = 60.0
"""For a whole request to arrive, from its first byte or a connection's start on."""
SEND_SECONDS = 60.0
"""For a client to take what waits to be sent."""
KEEP_ALIVE_SECONDS = 15
MOST_HEAD = 65_536
BACKLOG = 2048


@dataclass(frozen=True)
class Life:
    """drain: seconds for the last questions, after SIGTERM."""

    drain: float = 300.0
    access_log: bool = False


class PatientProtocol(H11Protocol):
    """Waits for a client that sends or reads slowly, but not for ever; says what is wrong as the routes do.

    `_timer` runs while some of a request is still to come, `_stalled` while something waits to be sent.
    """

    _timer: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Whatever the system does not take at once pauses writing, also what a closed connection leaves behind.
        transport.set_write_buffer_limits(high=0)
        self._timer = self.loop.call_later(RECEIVE_SECONDS, self._is_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()
        waits = self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= MOST_HEAD
        if waits and self.flow.read_paused:
            # Whoever sends the next request before this answer has ended may also leave before that.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        self._end("_timer")
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._watch()

    def _watch(self) -> None:
        if self.conn.their_state is h11.IDLE and self.cycle is not None and not self.conn.trailing_data[0]:
            # Between two requests; the body of one that was refused early ends here, too.
            self._end("_timer")
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._end("_timer")
        elif self._timer is None:
            self._timer = self.loop.call_later(RECEIVE_SECONDS, self._is_late)

    def _is_late(self) -> None:
        self._timer = None
        if self.cycle is None and not self.conn.trailing_data[0]:
            self.transport.abort()
        else:
            self._refuse(408, f"the request did not come within {RECEIVE_SECONDS:g} seconds; send it at once")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, f"the request is no HTTP, or its head has more than {MOST_HEAD:,} bytes; mend the client")

    def _unsupported_upgrade_warning(self) -> None:
        """Is answered as if nothing else had been offered, as HTTP has it."""

    def _refuse(self, status: int, message: str) -> None:
        """Without the routes, as the last that is said here."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        said = Refusal(status, message, headers={"Connection": "close"}).response()
        events = (h11.Response(status_code=status, headers=said.raw_headers), h11.Data(data=bytes(said.body)))
        for event in (*events, h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("_timer")
        self._end("_stalled")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._end("_stalled")
        super().resume_writing()

    def _end(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)


class Server(uvicorn.Server):
    """The first signal drains: new questions get 503, and the server ends when the last is answered. The second ends
    it at once."""

    def __init__(self, config: uvicorn.Config, desk: Desk, drain: float) -> None:
        super().__init__(config)
        self._desk, self._drain = desk, drain
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._until is None:
            self._desk.is_draining = True
            self._until = time.monotonic() + self._drain
            LOG.warning("no new questions; %d are being answered", self._desk.in_flight.requests)
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        is_over = await super().on_tick(counter)
        if self._until is None or is_over:
            return is_over
        return not self._desk.in_flight.requests or time.monotonic() > self._until


def listen(host: str, port: int) -> socket.socket:
    """Raises EngineError."""
    try:
        family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family[0], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(family[4])
        sock.listen(BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineError(f"{host}, {Setting('port')} {port}, cannot be bound ({reason}); choose another") from None
    return sock


def serve(served: Served, access: Access, life: Life, sock: socket.socket) -> None:
    """Until it is told to end."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    make_server(served, access, life)[0].run(sockets=[sock])


def make_server(served: Served, access: Access, life: Life) -> tuple[Server, Desk]:
    """One that is not started."""
    app, desk = make_app(served, access)
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        # What strangers send wrong are warnings.
        log_level="error",
        proxy_headers=bool(access.trusted_proxies),
        forwarded_allow_ips=list(access.trusted_proxies),
        access_log=life.access_log,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=MOST_HEAD,
        server_header=False,
        backlog=BACKLOG,
    )
    if life.access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return Server(config, desk, life.drain), desk
