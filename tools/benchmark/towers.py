"""A vision encoder by three hands, on the same random weights: our engine, transformers' own classes, and OpenVINO of
those.

Checkpoints are as transformers saves them. Other engines are imported in their own processes only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.build.checkpoint import Checkpoint
from engine.build.targets.onnxruntime import write_engine
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader
from engine.dims import Limits
from engine.families import read_model
from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor
from engine.runtime.vision import VisionEncoder
from tools.benchmark.sizes import SEED
from tools.benchmark.tower_sizes import Tower

HEAD_DIM = 64
TEXT = {"intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 512}
"""Of the language model, which is not run; but projectors are as wide as it."""


def tower_directory(work: Path, tower: Tower) -> Path:
    return work / tower.model_type


def write_towers(towers: Sequence[Tower], work: Path) -> None:
    for tower in towers:
        write_tower(tower, tower_directory(work, tower))


def write_tower(tower: Tower, out: Path) -> None:
    """A checkpoint as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    heads = tower.output_size // HEAD_DIM
    text: dict[str, Any] = {**TEXT, "hidden_size": tower.output_size}
    text |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    whole: dict[str, Any] = {}
    if tower.model_type.startswith("qwen"):
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    else:
        text["model_type"] = "qwen2"
    if tower.model_type == "llava_onevision":
        whole["image_grid_pinpoints"] = [[tower.side, tower.side]]
    vision = dict(tower.vision_config())
    config = AutoConfig.for_model(tower.model_type, text_config=text, vision_config=vision, **whole)
    torch.manual_seed(SEED)
    AutoModelForImageTextToText.from_config(config).float().save_pretrained(out)


def build_tower(directory: Path, out: Path) -> None:
    """Our vision engine, as `sgl build` makes it in fp32."""
    family, config = read_model(directory)
    checkpoint = Checkpoint(directory)
    reader = WeightReader(checkpoint, family.vision_sources(config, checkpoint.names()))
    limits = Limits(max_tokens=2048, max_batch=1, max_tiles=2, max_picture_tokens=2048)
    write_engine(vision_graph(config.vision, limits), reader, out, lambda fraction: None)


def picture(tower: Tower, directory: Path) -> np.ndarray:
    """Pixels of one piece, random, as its family cuts them."""
    from PIL import Image

    family, config = read_model(directory)
    colours = np.random.default_rng(SEED).integers(0, 256, (tower.side, tower.side, 3), np.uint8)
    return family.cut(Image.fromarray(colours), config).pixels[:1]


class OurEncoder:
    def __init__(self, engine: Path, directory: Path, threads: int) -> None:
        self._encoder = VisionEncoder(OnnxRuntimeExecutor.load(engine, threads), read_model(directory)[1].vision)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """-> [V,C]"""
        return np.asarray(self._encoder.encode(pixels))


class TorchEncoder:
    """transformers' own, with sdpa attention."""

    def __init__(self, directory: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = load_model(directory)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """-> [V,C]"""
        given, compute = given_and_compute(self._model, pixels)
        return flat(compute(given).numpy())


class OpenVinoEncoder:
    """transformers' module, converted and compiled at the first picture."""

    def __init__(self, directory: Path, threads: int) -> None:
        import torch

        torch.set_grad_enabled(False)
        self._model, self._threads = load_model(directory), threads
        self._compiled: Any = None

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """-> [V,C]"""
        import openvino

        given, compute = given_and_compute(self._model, pixels)
        if self._compiled is None:
            converted = openvino.convert_model(as_module(self._model, compute), example_input=given)
            settings = {"INFERENCE_NUM_THREADS": self._threads, "INFERENCE_PRECISION_HINT": "f32"}
            self._compiled = openvino.compile_model(converted, "CPU", settings)
        return flat(self._compiled(given.numpy())[0])


@dataclass(frozen=True)
class TowerPeer:
    """An engine to stand beside. module, package: what it imports, and who brings that. load: in its process."""

    name: str
    module: str
    package: str
    load: Callable[[Path, int], Any]


PEERS = (
    TowerPeer("transformers", "transformers", "transformers", TorchEncoder),
    TowerPeer("OpenVINO", "openvino", "openvino", OpenVinoEncoder),
)


def load_model(directory: Path) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval().model


def given_and_compute(model: Any, pixels: np.ndarray) -> tuple[Any, Callable[[Any], Any]]:
    """What transformers' vision encoder takes of these pixels, and features of that."""
    import torch

    given = torch.from_numpy(np.ascontiguousarray(pixels))
    match model.config.model_type:
        case "qwen2_vl" | "qwen2_5_vl":
            _, rows, columns, merged, values = pixels.shape
            side = int(merged**0.5)
            grid = torch.tensor([[1, rows * side, columns * side]])
            return given.reshape(-1, values), lambda x: model.visual(x, grid_thw=grid).pooler_output
        case "llava_onevision":
            # As it takes them itself: behind the last layer, before the norm that follows it.
            seen = {"output_hidden_states": True}
            return given, lambda x: model.multi_modal_projector(model.vision_tower(x, **seen).hidden_states[-1])
    return given, lambda x: model.get_image_features(x).pooler_output


def as_module(model: Any, compute: Callable[[Any], Any]) -> Any:
    """What OpenVINO converts."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return compute(x)

    return Module()


def flat(features: np.ndarray) -> np.ndarray:
    """[...,C] -> [V,C]"""
    return features.reshape(-1, features.shape[-1])
