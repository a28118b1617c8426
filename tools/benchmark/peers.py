"""Other engines on the same weights: how each is prepared and run. They are imported in their own processes only."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.runtime.prompt import PromptTokens
from tools.benchmark.worker import WorkerError

PREFIX = "language_model."
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Peer:
    """An engine to stand beside.

    modules: what it imports, by the name that pip installs. target: the most that our time may be of its time.
    export: (transformers checkpoint, out) writes what it loads. load: (path, threads, longest sequence) -> its runner,
    which has `prefill` and `decode` as `EngineRunner`. setting: how it was run.
    """

    name: str
    modules: Mapping[str, str]
    target: float
    export: Callable[[Path, Path], None]
    load: Callable[[Path, int, int], Any]
    setting: str

    def missing(self) -> str | None:
        """Why it cannot run here, if so."""
        absent = [package for package, module in self.modules.items() if importlib.util.find_spec(module) is None]
        return f"not installed: no package {', '.join(absent)}" if absent else None


@dataclass(frozen=True)
class LoadPeer:
    """What a worker calls to get a peer's runner."""

    peer: Peer
    path: Path
    threads: int
    max_tokens: int

    def __call__(self) -> Any:
        return self.peer.load(self.path, self.threads, self.max_tokens)


def write_transformers_checkpoint(checkpoint: Path, out: Path) -> None:
    """The language model of an InternVL2 checkpoint as a checkpoint of its own."""
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        loaded = load_file(file)
        tensors |= {name.removeprefix(PREFIX): t for name, t in loaded.items() if name.startswith(PREFIX)}
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["llm_config"]
    config.pop("attn_implementation", None)  # published for GPUs; every peer has its own for this machine
    (out / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, out)


class Transformers:
    """`Qwen2ForCausalLM`, sdpa attention, its default cache, the head on the last token only."""

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
        self._cache: Any = None

    def prefill(self, prompt: PromptTokens, new_tokens: int) -> np.ndarray:
        self._cache = None
        return self._feed(prompt.ids)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        for token in tokens:
            logits = self._feed(np.array([token]))
        return logits

    def _feed(self, ids: np.ndarray) -> np.ndarray:
        output = self._model(
            self._torch.from_numpy(ids)[None], past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        return output.logits[0, -1].numpy()


def link_checkpoint(checkpoint: Path, out: Path) -> None:
    """transformers loads the checkpoint as it is."""
    out.symlink_to(checkpoint.resolve())


class Genai:
    """onnxruntime-genai's generator; tokens are appended, so that nothing is sampled."""

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        import onnxruntime_genai as genai

        config = path / "genai_config.json"
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        config.write_text(json.dumps(settings), encoding="utf-8")
        self._genai = genai
        self._model = genai.Model(str(path))
        self._generator: Any = None

    def prefill(self, prompt: PromptTokens, new_tokens: int) -> np.ndarray:
        self._generator = None
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(prompt.ids) + new_tokens + 1)
        self._generator = self._genai.Generator(self._model, parameters)
        return self._feed(prompt.ids)

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        for token in tokens:
            logits = self._feed(np.array([token]))
        return logits

    def _feed(self, ids: np.ndarray) -> np.ndarray:
        self._generator.append_tokens(ids.astype(np.int32))
        return self._generator.get_logits().reshape(-1)


def export_genai(checkpoint: Path, out: Path) -> None:
    """Its own model builder, as a command."""
    cache = out.with_name(f"{out.name}-cache")
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    command += ["-i", str(checkpoint), "-o", str(out), "-c", str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"its model builder failed: {done.stderr.strip().splitlines()[-1]}")


class LlamaCpp:
    """llama.cpp through llama-cpp-python's context, weights and KV cache in float32."""

    def __init__(self, path: Path, threads: int, max_tokens: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=max_tokens,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )

    def prefill(self, prompt: PromptTokens, new_tokens: int) -> np.ndarray:
        self._model.reset()
        self._model.eval(prompt.ids.tolist())
        return self._logits()

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        for token in tokens:
            self._model.eval([int(token)])
        return self._logits()

    def _logits(self) -> np.ndarray:
        pointer = self._library.llama_get_logits_ith(self._model.ctx, -1)
        return np.ctypeslib.as_array(pointer, (self._model.n_vocab(),)).copy()


def export_gguf(checkpoint: Path, out: Path) -> None:
    """A float32 GGUF by the `gguf` package."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, checkpoint, config["vocab_size"])
    tensor_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, layers)
    for name, tensor in load_file(checkpoint / WEIGHTS).items():
        known = tensor_names.get_name(name, (".weight", ".bias"))
        assert known is not None, f"GGUF has no place for {name}"
        writer.add_tensor(known, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, checkpoint: Path, size: int) -> None:
    """The checkpoint's byte-level tokens; rows of the embedding that none uses get names of their own."""
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    used = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = [f"<unused{index}>" for index in range(size)]
    for text, index in used.items():
        tokens[index] = text
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * size)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])


PEERS = (
    Peer(
        "transformers",
        {"torch": "torch", "transformers": "transformers"},
        0.5,
        link_checkpoint,
        Transformers,
        "sdpa attention, default cache",
    ),
    Peer(
        "onnxruntime-genai",
        {"onnxruntime-genai": "onnxruntime_genai", "torch": "torch", "transformers": "transformers"},
        1.0,
        export_genai,
        Genai,
        "its own model builder, `-p fp32 -e cpu`",
    ),
    Peer(
        "llama.cpp",
        {"llama-cpp-python": "llama_cpp", "gguf": "gguf", "torch": "torch"},
        1.0,
        export_gguf,
        LlamaCpp,
        "GGUF with float32 weights, float32 KV cache, default batch sizes",
    ),
)
