"""Random JSON schemas, of what people ask for."""

import random
from typing import Any

WORDS = ("red", "blue", "circle", "n", "left of", "größe", 'a "quote"', "名")
PATTERNS = ("^[a-z]{1,6}$", "^[A-Z][0-9]{2}$", "^(yes|no)$", "^#[0-9a-f]{6}$")


def random_schema(chance: random.Random, depth: int = 3) -> dict[str, Any]:
    """Of a text that is mostly short."""
    kinds = [_text, _number, _choice, _constant]
    if depth:
        kinds += [_object, _object, _array, _either]
    return chance.choice(kinds)(chance, depth)


def _text(chance: random.Random, depth: int) -> dict[str, Any]:
    if chance.random() < 0.4:
        return {"type": "string", "pattern": chance.choice(PATTERNS)}
    least = chance.randrange(3)
    return {"type": "string", "minLength": least, "maxLength": least + chance.randrange(12)}


def _number(chance: random.Random, depth: int) -> dict[str, Any]:
    low = chance.randint(-999, 999)
    kind = chance.choice(["integer", "number"])
    lower = chance.choice(["minimum", "exclusiveMinimum"])
    return {"type": kind, lower: low, "maximum": low + chance.randint(1, 999)}


def _choice(chance: random.Random, depth: int) -> dict[str, Any]:
    values: list[Any] = [*chance.sample(WORDS, 3), 3, -0.5, None, True]
    return {"enum": chance.sample(values, chance.randint(1, 4))}


def _constant(chance: random.Random, depth: int) -> dict[str, Any]:
    return chance.choice([{"type": "boolean"}, {"type": "null"}, {"const": chance.choice(WORDS)}])


def _object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(WORDS, chance.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(chance, depth - 1) for name in names},
        "required": chance.sample(names, chance.randint(0, len(names))),
        "additionalProperties": False,
    }


def _array(chance: random.Random, depth: int) -> dict[str, Any]:
    least = chance.randrange(3)
    return {
        "type": "array",
        "items": random_schema(chance, depth - 1),
        "minItems": least,
        "maxItems": least + chance.randrange(3),
    }


def _either(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(chance, depth - 1) for _ in range(chance.randint(1, 3))]}
