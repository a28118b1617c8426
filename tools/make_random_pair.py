"""Make a pair of tiny checkpoints of a family with random weights, in the published format."""

import sys
from pathlib import Path
from typing import Any

from engine.cli.command_line import CommandParser
from tools.random_checkpoint import VOCAB_SIZE, write_checkpoint, write_tokenizer
from tools.random_families import SIZES, write_tiny_pair

__all__ = ["LARGE", "SMALL", "main", "write_checkpoint", "write_pair", "write_tokenizer"]

INTERNVL2 = "internvl2"
COMMON: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 112,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "model_type": "internvl_chat",
    "ps_version": "v2",
    "select_layer": -1,
    "use_thumbnail": True,
}
VISION: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "hidden_act": "gelu",
    "image_size": 112,
    "layer_norm_eps": 1e-6,
    "model_type": "intern_vit_6b",
    "num_channels": 3,
    "patch_size": 14,
}
LANGUAGE: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "vocab_size": VOCAB_SIZE,
}
SMALL = COMMON | {
    "template": "internlm2-chat",
    "torch_dtype": "bfloat16",
    "llm_config": LANGUAGE
    | {
        "architectures": ["InternLM2ForCausalLM"],
        "bias": False,
        "hidden_size": 64,
        "intermediate_size": 160,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 1000000,
    },
    "vision_config": VISION
    | {
        "hidden_size": 32,
        "intermediate_size": 64,
        "norm_type": "layer_norm",
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "qk_normalization": False,
        "qkv_bias": True,
    },
}
LARGE = COMMON | {
    "template": "Hermes-2",
    "torch_dtype": "float32",
    "llm_config": LANGUAGE
    | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "hidden_size": 128,
        "intermediate_size": 320,
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_hidden_layers": 10,
        "rope_scaling": None,
        "rope_theta": 500000.0,
    },
    "vision_config": VISION
    | {
        "hidden_size": 48,
        "intermediate_size": 96,
        "norm_type": "rms_norm",
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "qk_normalization": True,
        "qkv_bias": False,
    },
}


def write_pair(directory: Path, seed: int) -> None:
    """Of InternVL2: `small` (one file) and `large` (three shards and an index) with their tokenizers."""
    for name, config, shards in (("small", SMALL, 1), ("large", LARGE, 3)):
        write_checkpoint(directory / name, config, seed, shards)
        write_tokenizer(directory / name)


def main(argv: list[str] | None = None) -> int:
    parser = CommandParser(prog="make_random_pair", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory that receives small/ and large/")
    family = "whose pair it is (default: %(default)s)"
    parser.add_argument("--family", choices=(INTERNVL2, *SIZES), default=INTERNVL2, help=family)
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed} is negative; give 0 or more")
    try:
        if arguments.family == INTERNVL2:
            write_pair(arguments.out, arguments.seed)
        else:
            write_tiny_pair(arguments.out, arguments.family, arguments.seed)
    except OSError as error:
        print(f"{arguments.out} cannot be written ({error}); choose another --out", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"random checkpoints small and large are in {arguments.out} ({size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
