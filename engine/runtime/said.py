"""What a model said, as part of a prompt: text that spells a control token there is ordinary text."""

import json
import re
import secrets
from collections.abc import Collection, Sequence
from typing import Any

import tokenizers

from engine.families import Part

PREFIX = r"\A(?!"
"""How the normal form of a tokenizer starts the pattern that puts a prefix before a text; exceptions follow."""


class SaidText:
    """Encodes prompts in which something that was said spells a control token, as if it were no token.

    The library finds a control token by its text, wherever that stands. Here it knows each by a secret name, which
    takes its place in the prompt: so the prompt is cut where it always is, and every other token is what it always is.
    """

    def __init__(self, library: tokenizers.Tokenizer, control: Collection[str]) -> None:
        """control: texts of added tokens."""
        self._library = library
        data = json.loads(library.to_str())
        tokens = [token for token in data["added_tokens"] if token["content"] in control]
        for token in tokens:
            token["special"] = True
        start = f"\ue000{secrets.token_hex(8)}"
        self._names = {token["content"]: f"{start}-{token['id']}\ue001" for token in tokens}
        _exempt(data["normalizer"], start)
        self._renamed = tokenizers.Tokenizer.from_str(json.dumps(data))
        self._renamed.encode_special_tokens = True  # that is, as ordinary text
        flags = ("lstrip", "rstrip", "normalized")
        names = [
            tokenizers.AddedToken(self._names[token["content"]], special=False, **{flag: token[flag] for flag in flags})
            for token in tokens
        ]
        self._renamed.add_tokens(names)
        self._numbers = {token["content"]: token["id"] for token in tokens}
        self._ids = {self._renamed.token_to_id(name): self._numbers[token] for token, name in self._names.items()}
        longest_first = sorted(self._names, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The ids of a prompt, with the begin of sequence that the checkpoint adds."""
        first = self._control.search(parts[0].text)
        if first is None:
            return self._encode(parts, whole=True)
        # what starts a text has rules of its own: up to a first control token, the prompt is encoded as it is
        number = self._numbers[first[0]]
        start = self._library.encode("".join(part.text for part in parts)).ids
        rest = self._encode([Part(parts[0].text[first.start() :]), *parts[1:]], whole=False)
        return start[: start.index(number)] + rest[rest.index(number) :]

    def _encode(self, parts: Sequence[Part], whole: bool) -> list[int]:
        text = "".join(
            part.text if part.is_said else self._control.sub(lambda found: self._names[found[0]], part.text)
            for part in parts
        )
        return [self._ids.get(number, number) for number in self._renamed.encode(text, add_special_tokens=whole).ids]


def _exempt(normalizer: Any, start: str) -> None:
    """Let no prefix stand before a text, or a name, of this start."""
    if isinstance(normalizer, dict):
        for part in normalizer.get("normalizers", ()):
            _exempt(part, start)
        pattern = normalizer.get("pattern", {}).get("Regex", "")
        if pattern.startswith(PREFIX):
            normalizer["pattern"]["Regex"] = f"{PREFIX}{start}|{pattern.removeprefix(PREFIX)}"
