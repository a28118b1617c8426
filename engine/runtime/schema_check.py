"""Whether a JSON schema can be followed, found out in a process of its own: the library's limits do not hold for every
schema, and one that overflows its stack ends the process.

`python -m engine.runtime.schema_check` reads a schema, and prints what is wrong with it.
"""

import json
import random
import resource
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any

from engine.errors import RequestError
from engine.json_schema import NAME, BadSchema
from engine.runtime.words import short

MISSING = " needs a package that is missing ({}); pip install 'sgl-engine[grammar]'"
LONGEST = 200
"""Characters of what the library says of a schema."""
GRAMMAR = '%llguidance {"no_forcing": true}\nstart: %json '
"""What a schema follows. Where only one text may come next, any tokens of it may: those that the library would choose
are of a tokenizer that puts no blank before a text."""
OPTIONS = {
    "whitespace_flexible": True,
    "whitespace_pattern": " ?",
    "lenient": False,
    "coerce_one_of": False,
    "item_separator": ",",
    "key_separator": ":",
}
"""Of the library, all of them: a schema that brings its own is not asked. One blank at most stands between two parts,
since a model that is not sure of what comes next likes to go on with blanks."""
LIMITS = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""Of the library, in its units: some ten milliseconds for a token, some ten megabytes."""
CPU_SECONDS = 2
WALL_SECONDS = 20.0
"""Of a machine that does much else."""
MEMORY = 1 << 30
"""Bytes of address space, of which some hundred million are the interpreter's."""
WALKS, STEPS = 4, 32
STACK = 1 << 20
"""Bytes, as a thread of the server has at least."""
DEAD_END = "NoExtension"
TOO_MUCH = "it takes too long or too much memory"
KNOWN = 256
"""Schemas whose outcome is remembered."""


def check_schema(schema: str) -> None:
    """Raises BadSchema, and RequestError where the library is missing."""
    library()
    if reason := _reason(schema):
        raise refused(reason)


def refused(reason: str) -> BadSchema:
    said = short(" ".join(reason.replace("<non-verbose/>", "").split()), LONGEST)
    return BadSchema(NAME, f" cannot be followed ({said}); send another, or a simpler one")


def library() -> Any:
    """Raises RequestError."""
    try:
        import llguidance
    except ImportError as error:
        raise RequestError(NAME, MISSING.format(error.name)) from None
    return llguidance


def make_matcher(schema: str, tokenizer: Any) -> Any:
    """The library's state of a text; it tells what is wrong by itself."""
    ours = library()
    grammar = ours.LLMatcher.grammar_from_lark(GRAMMAR + json.dumps(json.loads(schema) | {"x-guidance": OPTIONS}))
    return ours.LLMatcher(tokenizer, grammar, log_level=0, limits=ours.LLParserLimits(**LIMITS))


@lru_cache(KNOWN)
def _reason(schema: str) -> str:
    """Why it cannot be followed; empty if it can."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, input=schema.encode(), capture_output=True, timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        return TOO_MUCH
    except OSError as error:
        return f"no process looks at it, {error.strerror}"
    return TOO_MUCH if done.returncode else done.stdout.decode().strip()


class _Bytes:
    """A vocabulary of all bytes, and an end."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        raise NotImplementedError("nothing is forced")


def reason_of(schema: str) -> str:
    """What is wrong, found by compiling it and by texts that it describes."""
    tokenizer = library().LLTokenizer(_Bytes(), 257, 256, library().LLTokenizer.json_slices())
    matcher = make_matcher(schema, tokenizer)
    chance = random.Random(0)
    for _ in range(WALKS):
        for _ in range(STEPS):
            bits = int.from_bytes(matcher.compute_bitmask(), "little")
            if matcher.is_error() or matcher.is_stopped():
                break
            allowed = [byte for byte in range(256) if bits >> byte & 1]
            if not allowed or not matcher.consume_token(chance.choice(allowed)):
                break
        if matcher.is_error():
            said = str(matcher.get_error())
            return "no text fulfils it" if said.startswith(DEAD_END) else said
        matcher.reset()
    return ""


def main() -> int:
    """In a thread, whose stack is known."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    schema = sys.stdin.buffer.read().decode()
    threading.stack_size(STACK)
    thread = threading.Thread(target=lambda: print(reason_of(schema)))
    thread.start()
    thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
