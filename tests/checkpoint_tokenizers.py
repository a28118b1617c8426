"""Small tokenizers in the forms that InternVL2 checkpoints publish, trained here, and texts that are hard on them."""

import io
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel

from engine.build.tokenizer_steps import LLAMA3_WORDS

PHI3_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
INTERNLM2_TOKENS = ("<|im_start|>", "<|im_end|>", "<|plugin|>")
QWEN2_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN2_TEXT_TOKENS = ("<ref>", "<référence>")
"""Not special: a text shows them."""
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
RESERVED = "[UNUSED_TOKEN_3]"
"""A user-defined piece of the InternLM2 form that no added token has taken over."""

CORPUS_WORDS = (
    *("the", "a", "image", "picture", "shows", "red", "blue", "what", "is", "number", "tokens", "attention", "visual"),
    *("你好", "世界", "图片", "什么", "hello", "world", "don't", "it's", "123", "4567", "café", "naïve"),
    *("aaaa", "aaa", "aa", "abab", "ababab", "%%", "%", "%%%%"),
)
FRAGMENTS = (
    *(
        "a",
        "e",
        "t",
        "0",
        ">",
        "<",
        "|",
        ".",
        "，",
        "。",
        "%%",
        "%%%%",
        "% %",
        "...",
        "aaaaa",
        "ababa",
        "hello",
        " the",
    ),
    *("don't", "'s", "I'LL", "'ſ", "123", "4567890123456789", "你好", "世界", "图", "ا", "ह", "Ω", "ñ", "ﬁ"),
    *("é", "e\u0301", "\u212b", "😀", "👩\u200d👩\u200d👧", "🇨🇳", "▁", "▁▁", "<0x0A>", "<0xE4>"),
    *(" ", "  ", "     ", "\n", "\n\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\xa0", "\u2028", "\u3000"),
    *("\x00", "\x01", "\x7f", "\x85", "\u200b", "\ufeff", "\ufffd"),
)


def texts(tokens: tuple[str, ...], number: int = 1000) -> list[str]:
    """Generated strings with added tokens inside; none is an added token and nothing else."""
    random_source = random.Random(0)
    fixed = ["", " ", "  ", "\n", "▁", "a", " a", " a ", "</s", "<|im_", "<|im_end|"]
    fixed += [text for token in tokens for text in (f"a{token}", f"{token}a", f"{token}  \n a", f" {token}", token * 3)]
    fragments = (*FRAGMENTS, *tokens * 3)
    while len(fixed) < number:
        chosen = "".join(random_source.choices(fragments, k=random_source.randint(1, 14)))
        if chosen not in tokens:
            fixed.append(chosen)
    return fixed


def flags(content: str, **changes: bool) -> dict[str, Any]:
    """An entry of `added_tokens_decoder`."""
    usual = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **usual, **changes}


def write_sentencepiece(path: Path, vocab_size: int, **options: Any) -> None:
    """Trains a `tokenizer.model` with the settings of the Llama family."""
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "minloglevel": 2,
        "num_threads": 1,
    }
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()), model_writer=model, vocab_size=vocab_size, **(settings | options)
    )
    path.write_bytes(model.getvalue())


def write_internlm2(directory: Path) -> tuple[str, ...]:
    """InternLM2: `tokenizer.model` whose reserved pieces are taken over by added tokens. Returns the added tokens."""
    reserved = [f"[UNUSED_TOKEN_{n}]" for n in range(6)]
    write_sentencepiece(directory / "tokenizer.model", 470, user_defined_symbols=reserved)
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    ids = {name: number for number, name in enumerate(("<unk>", "<s>", "</s>"))}
    ids |= {name: model.piece_to_id(reserved[n]) for n, name in enumerate(INTERNLM2_TOKENS)}
    ids |= {name: model.get_piece_size() + n for n, name in enumerate(IMAGE_TOKENS)}
    config = {
        "added_tokens_decoder": {str(number): flags(name) for name, number in ids.items()},
        "additional_special_tokens": [*INTERNLM2_TOKENS, *IMAGE_TOKENS],
        **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
        **{"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "InternLM2Tokenizer"},
    }
    write_json(directory / "tokenizer_config.json", config)
    return tuple(ids)


def write_llama(directory: Path, *, legacy: bool | None, vocab_size: int = 420, **options: Any) -> tuple[str, ...]:
    """Phi-3 (`legacy` False) and Yi: `tokenizer.model`, tokens that strip what follows. Returns the added tokens."""
    write_sentencepiece(directory / "tokenizer.model", vocab_size, **options)
    added = {"0": flags("<unk>"), "1": flags("<s>"), "2": flags("</s>", rstrip=True, special=False)}
    added |= {str(vocab_size + n): flags(name, rstrip=n > 0) for n, name in enumerate(PHI3_TOKENS)}
    added |= {str(vocab_size + len(PHI3_TOKENS) + n): flags(name) for n, name in enumerate(IMAGE_TOKENS)}
    config = {
        "added_tokens_decoder": added,
        "additional_special_tokens": list(IMAGE_TOKENS),
        **{"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
        **{"add_bos_token": True, "legacy": legacy, "tokenizer_class": "LlamaTokenizer"},
    }
    write_json(directory / "tokenizer_config.json", config)
    return tuple(entry["content"] for entry in added.values())


def write_qwen2(directory: Path, gap: int = 0) -> tuple[str, ...]:
    """Qwen2: `vocab.json`, `merges.txt`, added tokens `gap` ids behind them. Returns the added tokens."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        _corpus(), trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    library.model.save(str(directory))
    first = library.get_vocab_size() + gap
    names = (*QWEN2_TOKENS, *IMAGE_TOKENS, *QWEN2_TEXT_TOKENS)
    added = {str(first + n): flags(name, special=name not in QWEN2_TEXT_TOKENS) for n, name in enumerate(names)}
    config = {
        "added_tokens_decoder": added,
        "additional_special_tokens": [*QWEN2_TOKENS[1:], *IMAGE_TOKENS],
        **{"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None},
        **{"add_bos_token": False, "tokenizer_class": "Qwen2Tokenizer"},
    }
    write_json(directory / "tokenizer_config.json", config)
    write_json(directory / "added_tokens.json", {entry["content"]: int(number) for number, entry in added.items()})
    return names


def write_llama3(directory: Path) -> tuple[str, ...]:
    """Llama-3: `tokenizer.json` with its post-processor, image tokens beside it. Returns the added tokens."""
    parts = directory / "parts"
    parts.mkdir()
    write_qwen2(parts)
    model = models.BPE.from_file(str(parts / "vocab.json"), str(parts / "merges.txt"), ignore_merges=True)
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = ByteLevel()
    first = library.get_vocab_size()
    library.add_special_tokens(list(LLAMA3_TOKENS))
    library.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)]
    )
    library.enable_truncation(5)
    library.save(str(directory / "tokenizer.json"))
    names = (*LLAMA3_TOKENS, *IMAGE_TOKENS)
    config = {
        "added_tokens_decoder": {str(first + n): flags(name, rstrip=name == "<img>") for n, name in enumerate(names)},
        "additional_special_tokens": list(IMAGE_TOKENS),
        **{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"},
    }
    write_json(directory / "tokenizer_config.json", config)
    return names


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _corpus() -> list[str]:
    random_source = random.Random(0)
    return [" ".join(random_source.choices(CORPUS_WORDS, k=random_source.randint(3, 12))) for _ in range(400)]
