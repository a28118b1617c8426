"""What the JSON files beside a vocabulary say: added tokens, special tokens, options."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.bounds import TokenId, check_bounds, shown
from engine.errors import CheckpointError, EngineError
from engine.families.fields import read_object
from engine.json_file import VOCABULARY_BYTES

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
SWITCHES = ("add_bos_token", "add_eos_token", "legacy")
MOST_ADDED = 1 << 16
LONGEST_TOKEN = 1 << 12
"""Characters of an added token."""


@dataclass(frozen=True)
class AddedToken:
    """A token at which text is cut before anything else; fields as in `tokenizer.json`."""

    id: TokenId
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    """Looked for in the normalised text, not in the raw one."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 0 < len(self.content) <= LONGEST_TOKEN:
            raise EngineError(f"a token has {len(self.content)} characters")


@dataclass(frozen=True)
class TokenizerFiles:
    """The settings of one checkpoint's tokenizer."""

    directory: Path
    tokens: Mapping[str, AddedToken]
    """Those whose id is written in a file, by content."""
    class_name: str = ""
    switches: Mapping[str, bool] = field(default_factory=dict)
    """Those of `SWITCHES` that a file sets."""
    named: Mapping[str, "SpecialToken | None"] = field(default_factory=dict)
    """Those of `SPECIAL_NAMES` that a file names; None takes a default away."""
    additional: tuple["SpecialToken", ...] = ()

    def with_defaults(self, switches: Mapping[str, bool], named: Mapping[str, str]) -> "TokenizerFiles":
        """The same over the defaults of the tokenizer's class."""
        defaults = {name: SpecialToken(content) for name, content in named.items()}
        return replace(self, switches={**switches, **self.switches}, named={**defaults, **self.named})

    def special(self) -> dict[str, Mapping[str, bool]]:
        """The special tokens that the configuration names, in its order -> the flags that it gives them."""
        tokens = [*(self.named.get(name) for name in SPECIAL_NAMES), *self.additional]
        return {token.content: token.flags for token in tokens if token is not None}

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


@dataclass(frozen=True)
class SpecialToken:
    """A special token is published as text, or as an object with flags."""

    content: str
    flags: Mapping[str, bool] = field(default_factory=dict)


def read_tokenizer_files(checkpoint: Path) -> TokenizerFiles:
    """Of a checkpoint directory. Raises CheckpointError."""
    config_path, added_path = checkpoint / "tokenizer_config.json", checkpoint / "added_tokens.json"
    library_path = checkpoint / "tokenizer.json"
    config = read_object(config_path, VOCABULARY_BYTES)
    special = read_object(checkpoint / "special_tokens_map.json")
    # files without `added_tokens_decoder` are of the time when the map of special tokens counted
    config = special | config if "added_tokens_decoder" in config else config | special
    decoder = _typed(config_path, config, "added_tokens_decoder", dict) or {}
    library = _typed(library_path, read_object(library_path, VOCABULARY_BYTES), "added_tokens", list) or []
    # the flags of the first file to describe a token count
    described = [(config_path, number, flags) for number, flags in decoder.items()]
    described += [(library_path, None, flags) for flags in library]
    described += [(added_path, number, {"content": name}) for name, number in read_object(added_path).items()]
    if len(described) > MOST_ADDED:
        raise CheckpointError(f"{checkpoint} adds more than {MOST_ADDED} tokens to its vocabulary; use another one")
    tokens: dict[str, AddedToken] = {}
    by_id: dict[int, AddedToken] = {}
    for path, number, flags in described:
        token = _added_token(path, number, flags)
        known = tokens.setdefault(token.content, token)
        if known.id != token.id or by_id.setdefault(token.id, known) is not known:
            raise CheckpointError(
                f"{path} gives the added token {shown(token.content)} the id {token.id}, against another of the "
                "tokenizer files; download all of them in one version again"
            )
    switches = {name: _typed(config_path, config, name, bool) for name in SWITCHES}
    additional = _typed(config_path, config, "additional_special_tokens", list) or []
    return TokenizerFiles(
        checkpoint,
        tokens,
        _typed(config_path, config, "tokenizer_class", str) or "",
        {name: value for name, value in switches.items() if value is not None},
        {name: _special_token(config_path, config[name]) for name in SPECIAL_NAMES if name in config},
        tuple(filter(None, (_special_token(config_path, token) for token in additional))),
    )


def read_vocabulary(path: Path, vocab: Any) -> dict[str, int]:
    """A parsed vocabulary: piece -> id. Raises CheckpointError."""
    if not isinstance(vocab, dict):
        raise CheckpointError(f"{path} holds no vocabulary; download it again")
    pieces: dict[int, str] = {}
    for piece, number in vocab.items():
        if type(number) is not int or not 0 <= number < 1 << 24:
            raise CheckpointError(f"{path} gives {shown(piece)} the id {shown(number)}; download it again")
        if pieces.setdefault(number, piece) != piece:
            raise CheckpointError(
                f"{path} gives {shown(piece)} and {shown(pieces[number])} the same id {number}; download it again"
            )
    return vocab


def _typed(path: Path, values: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of this type; None where it is missing."""
    value = values.get(name)
    if value is not None and not isinstance(value, kind):
        raise CheckpointError(f"{path}: {name} is {shown(value)}, not a {kind.__name__}; download it again")
    return value


def _special_token(path: Path, token: Any) -> SpecialToken | None:
    if token is None:
        return None
    flags = token if isinstance(token, dict) else {"content": token}
    # The id is found later; any shows whether the rest is right.
    content = _added_token(path, 0, flags).content
    return SpecialToken(content, {name: flags[name] for name in FLAGS if name in flags})


def _added_token(path: Path, number: int | str | None, flags: Any) -> AddedToken:
    """`number` None: the id stands among the flags."""
    try:
        number = flags["id"] if number is None else number
        if isinstance(number, str) and number.isdecimal():
            number = int(number[:20])
        values = [flags.get(name, False) for name in FLAGS]
        if type(number) is int and isinstance(flags["content"], str) and set(map(type, values)) == {bool}:
            return AddedToken(number, flags["content"], *values)
    except (TypeError, KeyError, AttributeError, EngineError):
        pass
    raise CheckpointError(f"{path} describes an added token badly ({shown(flags)}); download it again")
