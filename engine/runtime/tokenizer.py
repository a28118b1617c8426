"""Text to token ids and back, also while the ids are still arriving."""

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers.decoders import ByteLevel

from engine.errors import ManifestError, RequestError
from engine.families import Prompt
from engine.runtime.said import SaidText

SPACE = "▁"
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")

# byte-level vocabularies write a byte as its Latin-1 letter, and the unprintable ones, in order, from U+0100 on
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_SYMBOLS = {chr(byte): byte for byte in PRINTABLE}
BYTE_SYMBOLS |= {chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(0x100)) - set(PRINTABLE)))}


class Tokenizer:
    """The `tokenizer.json` of an engine directory.

    A text is the bytes of its tokens, read as UTF-8, with U+FFFD for what is broken. The library's own decoding lets a
    broken byte garble the whole characters before it, so text that had arrived would change.
    """

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._library = library
        self._added = library.get_added_tokens_decoder()
        self._said: dict[frozenset[str], SaidText] = {}
        self._byte_level = isinstance(library.decoder, ByteLevel)
        # encoding puts a space before the text
        self._has_prefix = not self._byte_level and b'"Strip"' in library.decoder.__getstate__()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Of a `tokenizer.json` that the build wrote. Raises ManifestError."""
        if not path.exists():
            raise ManifestError(f"{path} is missing; build the engine again")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library has no narrower class, and its panics are no Exception
            raise ManifestError(f"{path} is not a tokenizer ({error}); build the engine again") from None

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the begin of sequence that the checkpoint adds. Raises RequestError."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"character {error.start} of the text is half a surrogate pair; send Unicode") from None
        return self._library.encode(text).ids

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """The same of a prompt, in which what was said holds no control tokens, whatever it spells."""
        said = [part.text for part in prompt.parts if part.is_said]
        needed = {*prompt.stop, prompt.image_token, prompt.clip_token}
        added = self._added.values()
        control = frozenset(token.content for token in added if token.special or token.content in needed)
        ids = self.encode(prompt.text)
        if not any(content in text for text in said for content in control):
            return ids
        if control not in self._said:
            self._said[control] = SaidText(self._library, control)
        return self._said[control].encode(prompt.parts)

    def encode_behind(self, before: str, text: str) -> list[int]:
        """The ids of a text that follows another one; none where the two share a token."""
        start, whole = (self._library.encode(one, add_special_tokens=False).ids for one in (before, before + text))
        return whole[len(start) :] if whole[: len(start)] == start else []

    def spells_alike(self, other: "Tokenizer", ids: Iterable[int]) -> bool:
        """Whether these ids are the same tokens for another tokenizer."""
        tokens = ((self._library.id_to_token(number), other._library.id_to_token(number)) for number in ids)
        return all(ours is not None and ours == theirs for ours, theirs in tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without special tokens."""
        parts: list[bytes] = []
        for token_id in ids:
            part = self.token_bytes(token_id, starts=not parts)
            if part is not None:
                parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")

    def token_id(self, token: str) -> int:
        """Raises ManifestError for a token that is not in the vocabulary."""
        number = self._library.token_to_id(token)
        if number is None:
            raise ManifestError(f"the engine's tokenizer has no token {token!r}; build it from another checkpoint")
        return number

    def ids_of(self, contents: Iterable[str]) -> list[int]:
        """Of the special tokens among these."""
        wanted = set(contents)
        return [token_id for token_id in self._added if self.special(token_id) in wanted]

    def special(self, token_id: int) -> str | None:
        """The content of a special token; None for a token of text."""
        token = self._added.get(token_id)
        return token.content if token is not None and token.special else None

    def token_bytes(self, token_id: int, starts: bool) -> bytes | None:
        """What a token adds to a text, or starts it with; None if it is special, or if there is none of that id."""
        piece = self._library.id_to_token(token_id)
        if piece is None or self.special(token_id) is not None:
            return None
        if self._byte_level:
            symbols = token_id not in self._added and BYTE_SYMBOLS.keys() >= set(piece)
            return bytes(BYTE_SYMBOLS[symbol] for symbol in piece) if symbols else piece.encode()
        byte = BYTE_PIECE.fullmatch(piece)
        if byte:
            return bytes.fromhex(byte[1])
        if starts and self._has_prefix:
            piece = piece.removeprefix(SPACE)
        return piece.replace(SPACE, " ").encode()


class TextStream:
    """The text of ids as they arrive: what has been returned is final, and adds up to `Tokenizer.decode` of all ids.

    It ends before the first of the `stop` texts to be complete; a special token in `stop` ends it, too.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        if "" in stop:
            raise RequestError("a stop text is empty; leave it out")
        self._tokenizer = tokenizer
        self._stop = stop
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._started = False
        self._held = ""
        self.stopped = False
        """A stop text was reached; whatever comes after it is no part of the text."""

    def push(self, token_id: int) -> str:
        """The text that has become final."""
        if self.stopped:
            return ""
        if self._tokenizer.special(token_id) in self._stop:
            text = self.flush()
            self.stopped = True
            return text
        data = self._tokenizer.token_bytes(token_id, starts=not self._started)
        if data is None:
            return ""
        self._started = True
        return self._release(self._utf8.decode(data))

    def flush(self) -> str:
        """The rest of the text, once there are no more ids."""
        if self.stopped:
            return ""
        text = self._release(self._utf8.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, arrived: str) -> str:
        """What no stop text can reach any more; `_held` keeps the rest, the start of a stop text at most."""
        text = self._held + arrived
        # by end, then by start: the same cut however the text is split into tokens
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        final = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[final:]
        return text[:final]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop text, which is not in it, may begin with."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
