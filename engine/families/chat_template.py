"""The chat template of a checkpoint, which is not run: it has to be one whose prompts the engine makes itself."""

import re
from collections.abc import Mapping
from pathlib import Path

from engine.bounds import shown
from engine.errors import CheckpointError
from engine.families.fields import read_fields, read_file

IGNORED = re.compile(r"\{%elif content\['type'\]=='video'%\}\{\{'<video>\n'\}\}|\{#[^{}#]*#\}")
"""What some leave out: a picture's like for videos, and comments."""
PARTS = re.compile(
    r"('(?:[^'\\]|\\.)*')|\s*(\{%|\{\{)-\s*|(?m:^[ \t]*)(\{%)\s*|(\{%|\{\{)\s*|\s*-(%\}|\}\})\s*|\s*(%\})\n?|\s*(\}\})"
    r"|\s*(==|\+)\s*"
)
"""A text, or what blanks around it do not matter: marks of tags, as transformers sets Jinja up, and operators."""


LONGEST = 1 << 13
"""Characters of a template; published ones have a few thousand, and the work grows faster than the length."""


def find_template(directory: Path, known: Mapping[str, str]) -> str | None:
    """The name of a checkpoint's template; None if there is none. Found where the published processor finds it.

    known: by `normal` form. Raises CheckpointError for another one.
    """
    if (directory / "chat_template.jinja").exists():
        place = directory / "chat_template.jinja"
        try:
            template = read_file(place).decode("utf-8")
        except ValueError as error:
            raise CheckpointError(f"{place} cannot be read ({error}); download it again") from None
        said: object = template
    else:
        places = [directory / name for name in ("chat_template.json", "processor_config.json")]
        found = [(place, fields) for place in places if (fields := read_fields(place)).has("chat_template")]
        if not found:
            return None
        place, fields = found[0]
        said = fields.values["chat_template"]
    if not isinstance(said, str) or len(said) > LONGEST or normal(said) not in known:
        raise CheckpointError(
            f"{place} holds another chat template ({shown(said)}) than checkpoints of this layout are published with, "
            "and the engine makes prompts of that one only; put the published template back if the model was trained "
            "with it, or choose another checkpoint"
        )
    return known[normal(said)]


def normal(template: str) -> str:
    """Without what changes no prompt: blanks in tags, the kind of quotes, the way to write an end of line."""
    text = template.removesuffix("\n").replace('"', "'").replace("\\n", "\n")
    return IGNORED.sub("", PARTS.sub(lambda part: part[part.lastindex or 0], text))
