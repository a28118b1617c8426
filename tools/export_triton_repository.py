"""Export an engine directory as a model repository that a Triton Inference Server loads."""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

from engine.errors import RequestError
from engine.manifest import MANIFEST, Manifest, read_manifest
from engine.runtime.loading import check_device
from engine.target import Device
from engine.verification import verify
from tools.command_line import CommandParser, add_feature_cache, numbers, positive, run_command, size_text
from tools.triton.model_config import model_config
from tools.triton.placement import GPUS
from tools.triton.serve_config import ServeConfig
from tools.triton.tensors import ENGINE, MODELS, Model

SOURCE = '''"""Served by sgl-engine, which the server's Python environment must hold."""

from tools.triton.{name} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    default = "(default: %(default)s)"
    add("--engine", type=Path, required=True, metavar="DIR", help="a built engine directory")
    add("--out", type=Path, required=True, metavar="REPO", help="the model repository to write")
    add("--link", action="store_true", help="link to the engine directory instead of copying it")
    add("--max-batch", type=positive, help="most questions of one batch (default: what the engine was built for)")
    add("--queue-delay-us", type=int, default=ServeConfig.queue_delay_us, help=f"wait for batch mates {default}")
    add("--small-instances", type=positive, default=ServeConfig.small_instances, help=default)
    add("--large-instances", type=positive, default=ServeConfig.large_instances, help=default)
    add(
        "--small-gpus",
        type=numbers,
        default=(),
        metavar="IDS",
        help="place them on each of these GPUs, e.g. 0,1 (default: none; TensorRT plans run on the first)",
    )
    add(
        "--large-gpus",
        type=numbers,
        default=(),
        metavar="IDS",
        help="likewise; with an engine of N ranks, on each N of them (default: none; the first N)",
    )
    add("--threads", type=positive, help="of each model instance (default: the cores that it may use)")
    add("--max-in-flight", type=positive, default=ServeConfig.max_in_flight, help=f"questions worked on {default}")
    add_feature_cache(parser)
    add("--environment", type=Path, help="Python environment of the models (default: the server's own)")
    add("--allow-image-urls", action="store_true", help="fetch http(s) pictures from public addresses")
    add("--no-warm-up", dest="warm_up", action="store_false", help="be ready before a first question was answered")

    add = parser.add_argument_group("defaults of requests that say nothing else").add_argument
    add("--max-tokens", type=positive, default=ServeConfig.max_tokens, help=default)
    add("--retention-ratio", type=float, help="(default: the engine directory's)")
    add("--prune-layer", type=int, help="(default: the engine directory's)")
    add("--exit-threshold", type=float, help="(default: the engine directory's)")


def run(arguments: argparse.Namespace) -> int:
    """Export, and return the exit status."""
    return run_command(lambda: export(arguments))


def export(arguments: argparse.Namespace) -> None:
    """Raises EngineError."""
    serve = ServeConfig(**{field.name: getattr(arguments, field.name) for field in fields(ServeConfig)})
    size = write_repository(arguments.engine, arguments.out, serve, arguments.link)
    names = ", ".join(model.name for model in MODELS)
    print(f"models {names} are in {arguments.out} ({size_text(size)}); serve them as docs/deploy.md says")


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
            for model in MODELS:
                write_model(unfinished / model.name, model, engine, manifest, serve, link)
            unfinished.rename(out)
    except OSError as error:
        raise RequestError(f"{out} cannot be written ({error}); choose another --out") from None
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink())


def check(serve: ServeConfig, engine: Path, manifest: Manifest) -> None:
    """Raises EngineError for defaults that no request could be answered with, and for GPUs that nothing would use."""
    if serve.small_gpus or serve.large_gpus:
        check_device(engine, manifest, Device.CUDA)
    large = manifest.models["large"]
    guidance = serve.guidance(manifest.guidance)
    if guidance.enabled:
        guidance.resolve(large.config.language.num_layers, large.prune_layers)
    if serve.max_batch is not None and serve.max_batch > manifest.max_batch:
        raise RequestError(
            f"max_batch {serve.max_batch} exceeds the engine's {manifest.max_batch}; "
            "ask for less or rebuild with a larger --max-batch"
        )
    if len(serve.large_gpus) % manifest.world_size:
        raise RequestError(
            f"--large-gpus names {len(serve.large_gpus)} GPUs, which groups of {manifest.world_size} ranks cannot "
            f"share out; give {manifest.world_size} of them, or a multiple"
        )


def write_model(
    directory: Path, model: Model, engine: Path, manifest: Manifest, serve: ServeConfig, link: bool
) -> None:
    """Every model has what it needs in its own directory, so that each can be moved, or stored remotely, alone."""
    version = directory / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SOURCE.format(name=model.name), encoding="utf-8")
    parameters = {ENGINE: ENGINE} | serve.parameters()
    if serve.environment is not None:
        parameters["EXECUTION_ENV_PATH"] = os.path.abspath(serve.environment)
    max_batch = serve.max_batch or manifest.max_batch
    instances = serve.instances(model.name, manifest.world_size)
    if instances.gpus and instances.ranks > 1:
        parameters[GPUS] = ",".join(map(str, instances.gpus))
    config = model_config(model, max_batch, serve.queue_delay_us, instances, parameters)
    (directory / "config.pbtxt").write_text(config, encoding="utf-8")
    if link:
        (version / ENGINE).symlink_to(engine.resolve(), target_is_directory=True)
        return
    (version / ENGINE).mkdir()
    shutil.copy2(engine / MANIFEST, version / ENGINE)
    role = model.name.removesuffix("_vlm")
    for component in manifest.components.values():
        for name in component.files:
            if name.split("/")[0] == role:
                target = version / ENGINE / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(engine / name, target)


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="export_triton_repository", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
