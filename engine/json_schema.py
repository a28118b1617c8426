"""JSON schemas of strangers, as far as they are JSON; `engine.runtime.schema_check` says whether one is followed."""

from engine.errors import RequestError, Setting
from engine.json_file import Unreadable, parse_json

MOST_BYTES = 1 << 16
ANY_OBJECT = '{"type": "object"}'
NAME = Setting("json_schema")


class BadSchema(RequestError):
    """A schema that is none, or that cannot be followed."""


def read_schema(text: str) -> None:
    """Raises BadSchema for what is no object in JSON, or too large a one."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MOST_BYTES:
        raise BadSchema(NAME, f" has more than {MOST_BYTES:,} bytes; send a smaller one")
    try:
        schema = parse_json(data)
    except Unreadable as error:
        raise BadSchema(NAME, f" cannot be read as JSON ({error}); send a schema, an object") from None
    if not isinstance(schema, dict):
        raise BadSchema(NAME, " is no object; send a schema")
