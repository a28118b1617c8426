"""Serve an engine directory to OpenAI's clients, with a page that shows what was looked at."""

import argparse
import sys
import time
from ipaddress import ip_network
from pathlib import Path

from engine.cli.command_line import (
    add_running_arguments,
    add_serving_arguments,
    positive,
    read_device,
    run_command,
    size,
)
from engine.cli.question_options import add_request_defaults, read_options
from engine.config import ServingConfig
from engine.errors import EngineError, RequestError, Setting
from engine.options import QuestionConfig, all_over
from engine.runtime.pipeline import SglPipeline
from engine.serve.warm_up import warm_up
from engine.units import size_text

MISSING = "the server's packages are missing ({}); pip install 'sgl-engine[serve]'"
LEAST_KEY = 8
"""Characters of a key."""
EVERY = "*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a request may say, too, stands in a group of its own."""
    default = "(default: %(default)s)"
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help=f"address to listen on; 0.0.0.0 is every one {default}")
    add("--port", type=int, default=8000, help=f"0 takes a free one {default}")
    add("--model-name", metavar="NAME", help="what requests call the model (default: the directory's name)")
    add("--api-key-file", type=Path, metavar="FILE", help="requests must bring the key that it holds")
    add(
        "--trusted-proxies",
        type=networks,
        default=(),
        metavar="ADDRESS,…",
        help="addresses and networks of proxies, whose X-Forwarded-For says who the client is (default: none)",
    )
    add("--max-body", type=size, default=64_000_000, metavar="SIZE", help="of a request (default: 64 MB)")
    add("--max-pictures", type=positive, default=16, help=f"of a question {default}")
    add(
        "--image-hosts",
        metavar="HOST,…",
        help=f"fetch http(s) pictures and clips from these hosts, {EVERY} from every public one (default: from none)",
    )
    add("--drain", type=float, default=300.0, metavar="SECONDS", help=f"for the last questions after SIGTERM {default}")
    add("--log-requests", action="store_true", help="log each request's address, path and status")
    add("--no-warm-up", dest="warm_up", action="store_false", help="listen before a first question was answered")
    add_running_arguments(parser)
    add_serving_arguments(parser)
    add_request_defaults(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until it is told to end, and return the exit status."""
    return run_command(lambda: serve(arguments))


def serve(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    try:
        from engine.serve.http import server
        from engine.serve.http.desk import Served
        from engine.serve.http.guard import Access
        from engine.serve.http.reader import Limits
    except ModuleNotFoundError as error:
        raise EngineError(MISSING.format(error.name)) from None
    access = Access(arguments.host, read_key(arguments.api_key_file), arguments.max_body, arguments.trusted_proxies)
    if not access.is_local() and access.api_key is None:
        print(f"anybody who reaches {access.host} may ask: there is no --api-key-file", file=sys.stderr)
    given = read_options(arguments)
    check_timeout(arguments.timeout)
    # Before the models are loaded, which takes time.
    sock = server.listen(arguments.host, arguments.port)
    serving = {name: getattr(arguments, name) for name in vars(ServingConfig())}
    pipeline = SglPipeline.load(arguments.engine, arguments.threads, device=read_device(arguments), **serving)
    with pipeline:
        manifest = pipeline.manifest
        config = all_over(QuestionConfig(guidance=manifest.guidance, exit=manifest.exit), given)
        hosts = read_hosts(arguments.image_hosts)
        limits = Limits(config, arguments.max_pictures, arguments.timeout, hosts)
        name = arguments.model_name or arguments.engine.resolve().name
        if arguments.warm_up:
            warm_up(pipeline)
        address, port = sock.getsockname()[:2]
        address = f"[{address}]" if ":" in address else address
        body = size_text(access.max_body)
        print(f"{name} answers at http://{address}:{port}, its page, and /v1 (requests up to {body})", flush=True)
        life = server.Life(arguments.drain, arguments.log_requests)
        server.serve(Served(pipeline, name, limits, int(time.time())), access, life, sock)


def networks(text: str) -> tuple[str, ...]:
    """Addresses and networks. Raises ArgumentTypeError."""
    found = []
    for part in text.split(","):
        try:
            found.append(str(ip_network(part.strip())))
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}; give addresses, or networks such as 10.0.0.0/8") from None
    return tuple(found)


def check_timeout(seconds: float | None) -> None:
    """Raises RequestError."""
    if seconds is not None and not seconds > 0:
        raise RequestError(Setting("timeout"), f" {seconds} is not a number above 0; give seconds")


def read_key(path: Path | None) -> str | None:
    """Raises RequestError."""
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(Setting("api_key_file"), f" {path} cannot be read ({error}); write a key into it") from None
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable():
        raise RequestError(
            Setting("api_key_file"),
            f" {path} holds no key of at least {LEAST_KEY} printable ASCII characters; write one",
        )
    return key


def read_hosts(text: str | None) -> tuple[str, ...] | None:
    """From which pictures are fetched; None is every public host."""
    if text is not None and text.strip() == EVERY:
        return None
    return tuple(host.strip().lower() for host in (text or "").split(",") if host.strip())
