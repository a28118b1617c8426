"""What a JSON schema lets a model say next."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from engine.json_schema import BadSchema
from engine.runtime.arrays import Array, array_namespace, device, is_host
from engine.runtime.form import Form
from engine.runtime.schema_check import check_schema, library, make_matcher, refused
from engine.runtime.tokenizer import Tokenizer


class Grammars:
    """Of one model. vocabulary: number of its logits."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary

    def form(self, schema: str) -> Form:
        """Of an answer that this schema describes. Raises BadSchema, and RequestError where the library is missing."""
        check_schema(schema)
        matcher = make_matcher(schema, self._library_tokenizer)
        if matcher.is_error():
            raise refused(matcher.get_error())
        return SchemaForm(matcher, self._vocabulary)

    @cached_property
    def _library_tokenizer(self) -> Any:
        """With one token more than the model has: the library's own for an end."""
        texts = [self._tokenizer.token_bytes(token, starts=False) for token in range(self._vocabulary)]
        tokens = _Tokens([text or b"" for text in texts])
        tokenizer = library().LLTokenizer
        return tokenizer(tokens, len(tokens.tokens), tokens.eos_token_id, tokenizer.json_slices())


class _Tokens:
    """A vocabulary as the library wants it; tokens without a text are never said."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, texts: list[bytes]) -> None:
        self.tokens = [*texts, b"<end>"]
        self.eos_token_id = len(texts)
        self.special_token_ids = [*(token for token, text in enumerate(texts) if not text), len(texts)]

    def __call__(self, text: str | bytes) -> list[int]:
        raise NotImplementedError("nothing is forced")


class SchemaForm(Form):
    """matcher: the library's state, of a vocabulary with one token more, for the end."""

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._ends: list[int] = []

    @property
    def is_over(self) -> bool:  # type: ignore[override]
        return bool(self._matcher.is_stopped())

    def end_with(self, tokens: Sequence[int]) -> None:
        self._ends = list(tokens)

    def mask(self, logits: Array) -> Array:
        allowed = self._allowed()
        if is_host(logits):
            return np.where(allowed, logits, np.float32(-np.inf))
        xp = array_namespace(logits)
        return xp.where(xp.asarray(allowed, device=device(logits)), logits, xp.full_like(logits, -np.inf))

    def take(self, token: int) -> None:
        if token not in self._ends and not self._matcher.consume_token(token):
            raise self._failed()

    def take_back(self, tokens: int) -> None:
        if tokens and not self._matcher.rollback(tokens):
            raise self._failed()

    def restart(self, tokens: Sequence[int] = ()) -> None:
        if not self._matcher.reset():
            raise self._failed()
        for token in tokens:
            self.take(token)

    def count_possible(self, tokens: Sequence[int]) -> int:
        count = self._matcher.try_consume_tokens(list(tokens))
        # Nothing may follow what ended it.
        possible = count - 1 if count and self.is_over else count
        self.take_back(count)
        return int(possible)

    def _allowed(self) -> np.ndarray:
        """bool [vocab]. Raises BadSchema."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise self._failed()
        allowed = np.unpackbits(bits, bitorder="little", count=self._vocabulary + 1).astype(bool)
        allowed[self._ends] = allowed[-1]
        return allowed[:-1]

    def _failed(self) -> BadSchema:
        return refused(self._matcher.get_error())
