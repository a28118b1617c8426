"""Checkpoint directories in which somebody changed configuration and tokenizer files."""

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from engine.build.tokenizer import write_tokenizer
from engine.families import family_of
from tools.fuzz.mutate import json_bytes, spoil_bytes, spoil_json
from tools.make_random_pair import SMALL
from tools.random_checkpoint import write_tokenizer as write_random_tokenizer

NAME = "checkpoints"


@cache
def files() -> dict[str, bytes]:
    """A checkpoint of random weights, by file name."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        (directory / "config.json").write_text(json.dumps(SMALL))
        write_random_tokenizer(directory)
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def make(seed: int) -> Any:
    """Files in the place of the right ones, in Latin-1."""
    rng = random.Random(seed)
    name = rng.choice(list(files()))
    content = files()[name]
    as_bytes = rng.random() < 0.2
    content = spoil_bytes(rng, content) if as_bytes else json_bytes(rng, spoil_json(rng, json.loads(content)))
    return {name: content.decode("latin-1")}


def run(case: Any) -> None:
    """Read the directory as a build does before it reads weights."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        for name, content in files().items():
            changed = case.get(name)
            (directory / name).write_bytes(content if changed is None else changed.encode("latin-1"))
        family, config = family_of(directory)
        read = family.read_config(directory, config)
        write_tokenizer(directory, directory, family.render_prompt(read, "", ()).image_token)
