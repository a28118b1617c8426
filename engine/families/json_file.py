"""JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again")
    return value
