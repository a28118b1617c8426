"""What the JSON files beside a vocabulary say: added tokens, special tokens, options."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.families.json_file import read_object

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class AddedToken:
    """A token at which text is cut before anything else; fields as in `tokenizer.json`."""

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    """Looked for in the normalised text, not in the raw one."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The settings of one checkpoint's tokenizer."""

    directory: Path
    config: Mapping[str, Any]
    """`tokenizer_config.json` and `special_tokens_map.json`, over the defaults of the tokenizer class."""
    tokens: Mapping[str, AddedToken]
    """Those whose id is written in a file, by content."""

    def with_defaults(self, defaults: Mapping[str, Any]) -> "TokenizerFiles":
        return replace(self, config={**defaults, **self.config})

    def special(self) -> dict[str, Mapping[str, Any]]:
        """The special tokens that the configuration names, in its order -> the flags that it gives them."""
        values = [self.config.get(name) for name in SPECIAL_NAMES]
        values += self.config.get("additional_special_tokens") or []
        return {content(value): value if isinstance(value, dict) else {} for value in values if value is not None}

    def added_tokens(self, vocab: Mapping[str, int]) -> list[AddedToken]:
        """All added tokens: a special token without an id has that of its piece in `vocab`, or the next free one."""
        special = self.special()
        tokens = {name: replace(token, special=token.special or name in special) for name, token in self.tokens.items()}
        for name, flags in special.items():
            if name not in tokens:
                free = max([-1, *vocab.values(), *(token.id for token in tokens.values())]) + 1
                tokens[name] = _added_token(
                    self.directory, vocab.get(name, free), {**flags, "content": name, "special": True}
                )
        return list(tokens.values())


def read_tokenizer_files(checkpoint: Path) -> TokenizerFiles:
    """Of a checkpoint directory. Raises CheckpointError."""
    config_path, added_path = checkpoint / "tokenizer_config.json", checkpoint / "added_tokens.json"
    library_path = checkpoint / "tokenizer.json"
    config, special = read_object(config_path), read_object(checkpoint / "special_tokens_map.json")
    # files without `added_tokens_decoder` are of the time when the map of special tokens counted
    config = special | config if "added_tokens_decoder" in config else config | special
    # the flags of the first file to describe a token count
    described = [(config_path, number, flags) for number, flags in (config.get("added_tokens_decoder") or {}).items()]
    described += [(library_path, None, flags) for flags in read_object(library_path).get("added_tokens") or []]
    described += [(added_path, number, {"content": name}) for name, number in read_object(added_path).items()]
    tokens: dict[str, AddedToken] = {}
    by_id: dict[int, AddedToken] = {}
    for path, number, flags in described:
        token = _added_token(path, number, flags)
        known = tokens.setdefault(token.content, token)
        if known.id != token.id or by_id.setdefault(token.id, known) is not known:
            raise CheckpointError(
                f"{path} gives the added token {token.content!r} the id {token.id}, against another of the tokenizer "
                "files; download all of them in one version again"
            )
    return TokenizerFiles(checkpoint, config, tokens)


def content(token: Any) -> str:
    """A special token is published as text, or as an object with flags."""
    return str(token["content"] if isinstance(token, dict) else token)


def _added_token(path: Path, number: int | str | None, flags: Mapping[str, Any]) -> AddedToken:
    """`number` None: the id stands among the flags."""
    try:
        return AddedToken(
            int(flags["id"] if number is None else number),
            str(flags["content"]),
            *(bool(flags.get(name, False)) for name in ("special", "lstrip", "rstrip", "single_word", "normalized")),
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        raise CheckpointError(f"{path} describes an added token badly ({flags}); download it again") from None
