"""Where the published code ends an answer, as `generation_config.json` says."""

from pathlib import Path

from engine.bounds import shown
from engine.families.fields import read_fields

MOST_ENDS = 64


def read_end_ids(directory: Path) -> tuple[int, ...]:
    """A number or a list. Raises CheckpointError."""
    fields = read_fields(directory / "generation_config.json")
    ids = fields.values.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if any(type(number) is not int or number < 0 for number in ids) or len(ids) > MOST_ENDS:
        fields.refuse(f"eos_token_id {shown(ids)} is no token, and no list of some; download it again")
    return tuple(dict.fromkeys(ids))
