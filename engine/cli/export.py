"""Export an engine directory as a model repository that a Triton Inference Server loads."""

import argparse
import os
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path

from engine.cli.command_line import add_serving_arguments, numbers, positive, run_command
from engine.cli.question_options import add_request_defaults, read_options
from engine.engine_directory import MANIFEST, read_manifest
from engine.errors import RequestError
from engine.manifest import Manifest
from engine.runtime.loading import check_device, gpus_of
from engine.runtime.question import Question, settle
from engine.serve.triton.model_config import model_config
from engine.serve.triton.placement import GPUS, instances
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import ENGINE, MODEL
from engine.target import Device
from engine.units import size_text
from engine.verification import verify

EXAMPLE = "What is this?"
SOURCE = '''"""Served by sgl-engine, which the server's Python environment must hold."""

from engine.serve.triton.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--engine", type=Path, required=True, metavar="DIR", help="a built engine directory")
    add("--out", type=Path, required=True, metavar="REPO", help="the model repository to write")
    add("--link", action="store_true", help="link to the engine directory instead of copying it")
    add(
        "--gpus",
        type=numbers,
        default=(),
        metavar="IDS",
        help="a process with both models on each of these GPUs, e.g. 0,1; with an engine of N ranks, on each N of "
        "them, and with --small-apart on one more (default: none; TensorRT plans run on the first ones)",
    )
    add("--threads", type=positive, help="of each process (default: the cores that it may use)")
    add_serving_arguments(parser)
    add("--environment", type=Path, help="Python environment of the model (default: the server's own)")
    add("--allow-image-urls", action="store_true", help="fetch http(s) pictures from public addresses")
    add("--no-warm-up", dest="warm_up", action="store_false", help="be ready before a first question was answered")

    add_request_defaults(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export, and return the exit status."""
    return run_command(lambda: export(arguments))


def export(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    own = {field.name: getattr(arguments, field.name) for field in fields(ServeConfig) if field.name != "options"}
    serve = ServeConfig(**own, options=read_options(arguments))
    written = write_repository(arguments.engine, arguments.out, serve, arguments.link)
    print(f"model {MODEL} is in {arguments.out} ({size_text(written)}); serve it as docs/deploy.md says")


def write_repository(engine: Path, out: Path, serve: ServeConfig, link: bool = False) -> int:
    """Write it, whole or not at all, and return its size in bytes. Raises EngineError."""
    manifest = read_manifest(engine)
    verify(engine, manifest)
    check(serve, engine, manifest)
    if out.exists():
        raise RequestError(f"{out} exists; remove it or choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as directory:
            unfinished = Path(directory) / out.name
            write_model(unfinished / MODEL, engine, manifest, serve, link)
            unfinished.rename(out)
    except OSError as error:
        raise RequestError(f"{out} cannot be written ({error}); choose another --out") from None
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink())


def check(serve: ServeConfig, engine: Path, manifest: Manifest) -> None:
    """Raises EngineError for defaults that no request could be answered with, and for GPUs that nothing would use."""
    if serve.gpus:
        check_device(engine, manifest, Device.CUDA)
    settle(Question((), EXAMPLE, **vars(serve.question(manifest))), manifest)
    count = gpus_of(manifest, serve.small_apart)
    if serve.small_apart and not serve.gpus:
        raise RequestError(
            f"--small-apart gives the small model a GPU of its own; name {count} or a multiple with --gpus"
        )
    if len(serve.gpus) % count:
        raise RequestError(
            f"--gpus names {len(serve.gpus)} GPUs, which processes of {count} each cannot share out; give {count} of "
            "them, or a multiple"
        )


def write_model(directory: Path, engine: Path, manifest: Manifest, serve: ServeConfig, link: bool) -> None:
    """The model has what it needs in its own directory, so that it can be moved, or stored remotely, alone."""
    version = directory / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SOURCE, encoding="utf-8")
    parameters = {ENGINE: ENGINE} | serve.parameters()
    if serve.environment is not None:
        parameters["EXECUTION_ENV_PATH"] = os.path.abspath(serve.environment)
    count = gpus_of(manifest, serve.small_apart)
    if count > 1 and serve.gpus:
        parameters[GPUS] = ",".join(map(str, serve.gpus))
    config = model_config(instances(serve.gpus, count), parameters)
    (directory / "config.pbtxt").write_text(config, encoding="utf-8")
    if link:
        (version / ENGINE).symlink_to(engine.resolve(), target_is_directory=True)
        return
    for name in (MANIFEST, *(name for component in manifest.components.values() for name in component.files)):
        target = version / ENGINE / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(engine / name, target)
