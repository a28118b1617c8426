"""A checkpoint's tokenizer in one normal form, `tokenizer.json` of the `tokenizers` library; nothing is left to decide.

The model cards load `AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)`: the files of a slow
tokenizer are read before a `tokenizer.json` beside them, and slow tokenizers are followed where fast ones differ.
- `tokenizer.model`: text is cut at the added tokens, and SentencePiece sees each part alone. `legacy` (InternLM2, Yi):
  every part gets the model's dummy prefix. Not `legacy` (Phi-3): the text gets one prefix, unless it starts with a
  token that the configuration names as special.
- `vocab.json` with `merges.txt` (Qwen2): NFC first, then the cut at the added tokens.
- A piece whose id an added token takes over (`[UNUSED_TOKEN_146]` of InternLM2) is no longer found in text.

Where the normal form is narrower: an added token that is the whole text, or a user-defined piece that is a whole part,
gets no prefix; a token that strips whitespace leaves U+001C..U+001F and user-defined pieces of spaces; among pieces of
equal score the lower id is joined first, not the leftmost.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken as SpecialToken
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from engine.bounds import shown
from engine.build.tokenizer_files import AddedToken, TokenizerFiles, read_tokenizer_files, read_vocabulary
from engine.build.tokenizer_steps import QWEN2_WORDS, check_steps
from engine.errors import CheckpointError
from engine.families.fields import read_file, read_object
from engine.json_file import VOCABULARY_BYTES

FILE = "tokenizer.json"
SPACE = "▁"
proto: Any = sentencepiece_model_pb2

SENTENCEPIECE_CLASSES = ("InternLM2Tokenizer", "LlamaTokenizer")
SENTENCEPIECE_SWITCHES = {"add_bos_token": True}
SENTENCEPIECE_NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SENTENCEPIECE_BYTES = 1 << 24
LONGEST_PIECE = 256
"""Characters: all the ways to join a piece of two others are looked for."""
QWEN2_CLASSES = ("Qwen2Tokenizer",)
QWEN2_NAMED = dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>")


def write_tokenizer(checkpoint: Path, out: Path, added: Sequence[str] = ()) -> None:
    """Writes `out/tokenizer.json` from the tokenizer files of a checkpoint directory. Raises CheckpointError."""
    read_tokenizer(checkpoint, added).save(str(out / FILE), pretty=False)


def read_tokenizer(checkpoint: Path, added: Sequence[str] = ()) -> Tokenizer:
    """Of the tokenizer files of a checkpoint directory. added: special tokens that get the next ids, if they have none.

    Raises CheckpointError.
    """
    tokenizer = _read_files(checkpoint)
    tokenizer.add_special_tokens([SpecialToken(token, normalized=False) for token in added])
    return tokenizer


def _read_files(checkpoint: Path) -> Tokenizer:
    files = read_tokenizer_files(checkpoint)
    name = files.class_name
    model, vocab, merges = (checkpoint / file for file in ("tokenizer.model", "vocab.json", "merges.txt"))
    fast = (checkpoint / FILE).exists()
    if fast and name.endswith(("Fast", "TokenizersBackend")):
        return _from_tokenizer_json(files)
    if model.exists():
        _check_class(model, name, SENTENCEPIECE_CLASSES)
        return _from_sentencepiece(model, files.with_defaults(SENTENCEPIECE_SWITCHES, SENTENCEPIECE_NAMED))
    if vocab.exists() and (merges.exists() or not fast):
        _check_class(vocab, name, QWEN2_CLASSES)
        return _from_vocabulary_and_merges(vocab, merges, files.with_defaults({}, QWEN2_NAMED))
    if fast:
        return _from_tokenizer_json(files)
    raise CheckpointError(
        f"{checkpoint} holds no tokenizer; download {FILE}, tokenizer.model, or vocab.json with merges.txt into it"
    )


def check_tokenizer(tokenizer: Tokenizer, checkpoint: Path, vocab_size: int, *needed: str) -> None:
    """Raises CheckpointError unless every token has a row of the embedding, and `needed` are one token each."""
    for token in needed:
        if tokenizer.encode(token, add_special_tokens=False).ids != [tokenizer.token_to_id(token)]:
            raise CheckpointError(
                f"the tokenizer of {checkpoint} has no token {token}; download all its tokenizer files again, also "
                "added_tokens.json and special_tokens_map.json"
            )
    last, number = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if number >= vocab_size:
        raise CheckpointError(
            f"the tokenizer of {checkpoint} gives {shown(last)} the id {number}, but its config.json says vocab_size "
            f"{vocab_size}, the rows of the embedding; download all files of one revision again"
        )


def _check_class(path: Path, name: str, known: tuple[str, ...]) -> None:
    if name and name.removesuffix("Fast") not in known:
        raise CheckpointError(
            f"{path} is of tokenizer class {shown(name)}, which is not read here; known: {', '.join(known)}"
        )


def _from_tokenizer_json(files: TokenizerFiles) -> Tokenizer:
    """The published form itself, with the added tokens and the ends of text that the files beside it say."""
    path = files.directory / FILE
    data = read_object(path, VOCABULARY_BYTES)
    model = data.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(f"{path} holds no BPE vocabulary, the only kind read here; download it again")
    check_steps(path, data)
    data |= {"truncation": None, "padding": None}
    normal = _assemble(path, data, files.added_tokens(read_vocabulary(path, model["vocab"])))
    if "ByteFallback" not in json.dumps(data.get("decoder")) and not isinstance(normal.decoder, decoders.ByteLevel):
        raise CheckpointError(f"{path} decodes neither byte-level nor with byte fallback; use another checkpoint")
    if {"add_bos_token", "add_eos_token"} & files.switches.keys():
        _add_ends(normal, files)
    return normal


def _from_vocabulary_and_merges(vocab_path: Path, merges_path: Path, files: TokenizerFiles) -> Tokenizer:
    """Qwen2: byte-level BPE."""
    vocab = read_vocabulary(vocab_path, read_object(vocab_path, VOCABULARY_BYTES))
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - vocab.keys()
    if missing:
        raise CheckpointError(f"{vocab_path} lacks {len(missing)} of the 256 byte symbols; download it again")
    merges = _read_merges(merges_path, vocab)
    with _library(vocab_path):
        normal = Tokenizer(BPE(vocab, merges))
    normal.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    normal.pre_tokenizer = pre_tokenizers.Sequence([words, symbols])
    normal.decoder = decoders.ByteLevel()
    # normalized: text is NFC before it is cut
    tokens = [replace(token, normalized=True) for token in files.added_tokens(vocab)]
    return _assemble(vocab_path, json.loads(normal.to_str()), tokens)


def _read_merges(path: Path, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    try:
        lines = [line.strip() for line in read_file(path, VOCABULARY_BYTES).decode("utf-8").split("\n")]
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        # only the first line is a comment: there are merges of "#"
        if not line or (number == 1 and line.startswith("#version:")):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise CheckpointError(f"{path} line {number} joins pieces that vocab.json lacks; download both again")
        merges.append((left, right))
    return merges


def _from_sentencepiece(path: Path, files: TokenizerFiles) -> Tokenizer:
    """InternLM2, Phi-3, Yi: BPE over characters, unknown ones as bytes."""
    model = _read_sentencepiece(path)
    kind = proto.ModelProto.SentencePiece
    taken_over = {token.id: token.content for token in files.tokens.values()}
    names = [taken_over.get(number, piece.piece) for number, piece in enumerate(model.pieces)]
    vocab = {name: number for number, name in enumerate(names)}
    if len(vocab) < len(names) or not 0 <= model.trainer_spec.unk_id < len(names):
        raise CheckpointError(f"{path} holds a piece twice, or lacks the one for unknown text; download it again")
    free = [piece for number, piece in enumerate(model.pieces) if number not in taken_over]
    merges = _merges({piece.piece: piece.score for piece in free if piece.type == kind.NORMAL})
    with _library(path):
        normal = Tokenizer(
            BPE(
                vocab,
                merges,
                unk_token=names[model.trainer_spec.unk_id],
                fuse_unk=True,
                byte_fallback=model.trainer_spec.byte_fallback,
            )
        )
    legacy = files.switches.get("legacy", True)
    # normalized, if not legacy: text is cut behind the prefix
    tokens = [replace(token, normalized=not legacy) for token in files.added_tokens(vocab)]
    # normalized: SentencePiece looks for its user-defined pieces behind the dummy prefix
    defined = [
        AddedToken(vocab[piece.piece], piece.piece, special=False, normalized=True)
        for piece in free
        if piece.type == kind.USER_DEFINED and piece.piece not in {token.content for token in tokens}
    ]
    prefix = []
    if legacy:
        if model.normalizer_spec.add_dummy_prefix:
            prefix = [_prefix(SPACE, whole=defined)]
        normal.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    else:
        special = files.special()
        prefix = [_prefix(" ", whole=tokens + defined, start=[token for token in tokens if token.content in special])]
        # spaces become pieces only behind the cut: tokens may strip them
        normal.normalizer = normalizers.Sequence([normalizers.Replace(SPACE, " "), *prefix])
        normal.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    normal.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    normal = _assemble(path, json.loads(normal.to_str()), tokens + defined)
    _add_ends(normal, files)
    return normal


def _read_sentencepiece(path: Path) -> Any:
    """The parsed `ModelProto`, of the kind that `_from_sentencepiece` reproduces exactly."""
    model = proto.ModelProto()
    try:
        model.ParseFromString(read_file(path, SENTENCEPIECE_BYTES))
    except DecodeError:
        raise CheckpointError(f"{path} is not a SentencePiece model; download it again") from None
    if not (model.pieces and model.HasField("trainer_spec") and model.HasField("normalizer_spec")):
        raise CheckpointError(f"{path} is truncated; download it again")
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    unsupported = {
        "a model type other than BPE": trainer.model_type != proto.TrainerSpec.BPE,
        f"the normalisation {normalizer.name}": bool(normalizer.precompiled_charsmap),
        "removal of extra whitespace": normalizer.remove_extra_whitespaces,
        "unescaped whitespace": not normalizer.escape_whitespaces,
        "whitespace as a suffix": trainer.treat_whitespace_as_suffix,
    }
    unsupported[f"pieces of more than {LONGEST_PIECE} characters"] = any(
        len(piece.piece) > LONGEST_PIECE for piece in model.pieces
    )
    for feature, present in unsupported.items():
        if present:
            raise CheckpointError(
                f"{path} uses {feature}, which is not read here; give the checkpoint a {FILE} in its place"
            )
    return model


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, best score first: SentencePiece joins what makes the best piece."""
    pairs = [
        (score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [(left, right) for _, left, right in pairs]


def _prefix(space: str, whole: Iterable[AddedToken], start: Iterable[AddedToken] = ()) -> normalizers.Normalizer:
    """Puts the dummy prefix `space` before a text that does not start with a token of `start`.

    Not before a token of `whole` alone: the library normalises the tokens themselves, too, to look for them.
    """
    exempt = [(r"\s*" if token.lstrip else "") + re.escape(token.content) for token in start]
    alone = [re.escape(token.content.replace(SPACE, space)) for token in whole]
    exempt.append(rf"(?:{'|'.join(alone)})\z")
    return normalizers.Replace(Regex(rf"\A(?!{'|'.join(exempt)})"), space)


def _assemble(path: Path, data: dict[str, Any], tokens: list[AddedToken]) -> Tokenizer:
    """The tokenizer of parsed `tokenizer.json` data with exactly these added tokens, at their ids."""
    vocab = data["model"]["vocab"]
    names = {number: name for name, number in vocab.items()}
    for token in tokens:
        if names.get(token.id, token.content) != token.content or vocab.get(token.content, token.id) != token.id:
            raise CheckpointError(
                f"{path} and the added token {token.content!r} with id {token.id} contradict each other; "
                "download all tokenizer files in one version again"
            )
        # the library numbers tokens outside the vocabulary itself
        vocab[token.content] = token.id
    data["added_tokens"] = [asdict(token) for token in sorted(tokens, key=lambda token: token.id)]
    with _library(path):
        return Tokenizer.from_str(json.dumps(data))


@contextmanager
def _library(path: Path) -> Iterator[None]:
    """Around what the tokenizers library makes of a file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # it has no narrower class, and its panics are no Exception
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a tokenizer ({reason}); download it again") from None


def _add_ends(normal: Tokenizer, files: TokenizerFiles) -> None:
    """The post-processor that puts the begin and the end of sequence around a text, where configured."""
    template = ["$A"]
    for end, place in (("bos", 0), ("eos", 2)):
        if files.switches.get(f"add_{end}_token"):
            token = files.named.get(f"{end}_token")
            if token is None or normal.token_to_id(token.content) is None:
                what = "it does not name" if token is None else f"is {shown(token.content)}, which no vocabulary has"
                raise CheckpointError(
                    f"{files.directory / 'tokenizer_config.json'} adds {end}_token, which {what}; "
                    "download all tokenizer files again"
                )
            template.insert(place, token.content)
    special = [(name, normal.token_to_id(name)) for name in template if name != "$A"]
    normal.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
