"""Checkpoint directories in which somebody changed files: configuration, tokenizers, lists of tensors."""

import json
import random
import struct
from functools import cache
from typing import Any

from engine.build.read_role import read_role, settle_tokens
from engine.build.tokenizer import FILE, write_tokenizer
from engine.config import BuildConfig
from engine.errors import ManifestError
from engine.runtime.tokenizer import Tokenizer
from tools.fuzz.checkpoint_files import LAYOUTS, SAFETENSORS
from tools.fuzz.mutate import json_bytes, spoil_bytes, spoil_json
from tools.fuzz.scratch import scratch

NAME = "checkpoints"
OTHERS = ("config.json", "generation_config.json", "special_tokens_map.json", "chat_template.json", "vocab.json")
"""Files that a directory may gain, whatever it held."""


def make(seed: int) -> dict[str, Any]:
    """`layout`, and `files` in the place of its own, in Latin-1."""
    rng = random.Random(seed)
    layout = rng.choice(list(LAYOUTS))
    files = LAYOUTS[layout]()
    changed = {}
    for name in rng.sample(list(files), rng.choice([1, 1, 1, 2])):
        changed[name] = _spoil(rng, name, files[name]).decode("latin-1")
    if rng.random() < 0.05:
        changed[rng.choice(OTHERS)] = json_bytes(rng, spoil_json(rng, {"eos_token_id": [1, 2]})).decode("latin-1")
    return {"layout": layout, "files": changed}


def run(case: dict[str, Any]) -> None:
    """Open the directory as a build does, as both models of a pair; a tokenizer that is built can be loaded."""
    files = LAYOUTS[case["layout"]]() | {name: text.encode("latin-1") for name, text in case["files"].items()}
    with scratch() as directory:
        for name, content in files.items():
            (directory / name).write_bytes(content)
        build, _ = settle_tokens(BuildConfig(directory, directory, directory / "engine"))
        read_role(build, "large", directory, None, True, lambda name, fraction: None)
        (directory / "engine").mkdir()
        write_tokenizer(directory, directory / "engine")
        try:
            Tokenizer.load(directory / "engine" / FILE).decode(range(300))
        except ManifestError as error:
            raise AssertionError("what was built cannot be loaded") from error


def _spoil(rng: random.Random, name: str, content: bytes) -> bytes:
    if name == SAFETENSORS and rng.random() < 0.7:
        size = int.from_bytes(content[:8], "little")
        header = json_bytes(rng, spoil_json(rng, json.loads(content[8 : 8 + size])))
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    if not name.endswith(".json") or rng.random() < 0.15:
        return spoil_bytes(rng, content)
    return json_bytes(rng, spoil_json(rng, _parsed(content)))


@cache
def _parsed(content: bytes) -> Any:
    return json.loads(content)
