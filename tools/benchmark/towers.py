"""Vision encoders of one checkpoint by three hands: our engine, transformers' own classes, and OpenVINO of those.

Checkpoints are as transformers saves them, with random weights of a published width and few layers, all alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.build.checkpoint import Checkpoint
from engine.build.targets.onnxruntime import write_engine
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader
from engine.dims import Limits
from engine.families import family_of
from engine.model_config import ModelConfig
from engine.runtime.executor_onnxruntime import OnnxRuntimeExecutor
from tools.benchmark.sizes import SEED

LAYERS = 4
TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
TEXT |= {"num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 512}
"""Of the language model, which is not run; but projectors are as wide as it."""


@dataclass(frozen=True)
class Tower:
    """name, and the published size whose width it has. model_type, vision, settings: of transformers' configuration,
    for so many layers. side: pixels along a square picture; patch: along one of its patches.
    """

    name: str
    model_type: str
    vision: Callable[[int], Mapping[str, Any]]
    output: Callable[[int], Mapping[str, Any]]
    side: int
    width: int
    patch: int = 14


TOWERS = (
    Tower(
        "InternViT (InternVL2-1B to 8B)",
        "internvl",
        lambda layers: (
            {"num_hidden_layers": layers, "hidden_size": 1024, "intermediate_size": 4096}
            | {"num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True}
        ),
        lambda width: {},
        side=448,
        width=1024,
    ),
    Tower(
        "Qwen2-VL's",
        "qwen2_vl",
        lambda layers: {"depth": layers, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4},
        lambda width: {"hidden_size": width},
        side=448,
        width=1536,
    ),
    Tower(
        "Qwen2.5-VL's, with windows",
        "qwen2_5_vl",
        lambda layers: (
            {"depth": layers, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420}
            | {"fullatt_block_indexes": [layers - 1], "window_size": 112}
        ),
        lambda width: {"out_hidden_size": width},
        side=448,
        width=2048,
    ),
    Tower(
        "SigLIP (LLaVA-OneVision)",
        "llava_onevision",
        lambda layers: (
            {"model_type": "siglip_vision_model", "num_hidden_layers": layers, "hidden_size": 1152}
            | {"intermediate_size": 4304, "num_attention_heads": 16, "image_size": 384, "patch_size": 14}
            | {"vision_use_head": False}
        ),
        lambda width: {},
        side=384,
        width=896,
    ),
)


def write_tower(tower: Tower, layers: int, out: Path) -> None:
    """A checkpoint as transformers saves it."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    heads = {"num_attention_heads": tower.width // 64, "num_key_value_heads": tower.width // 64}
    text: dict[str, Any] = {**TEXT, **heads, "hidden_size": tower.width}
    if tower.model_type.startswith("qwen"):
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    else:
        text["model_type"] = "qwen2"
    vision = {**tower.vision(layers), **tower.output(tower.width)}
    config = AutoConfig.for_model(tower.model_type, text_config=text, vision_config=vision)
    torch.manual_seed(SEED)
    model = AutoModelForImageTextToText.from_config(config).float()
    model.save_pretrained(out)


def read_tower(directory: Path) -> ModelConfig:
    family, config = family_of(directory)
    return family.read_config(directory, config)


def build_tower(directory: Path, out: Path) -> None:
    """Our vision engine, as `sgl build` makes it in fp32."""
    out.mkdir(parents=True, exist_ok=True)
    family, config = family_of(directory)[0], read_tower(directory)
    checkpoint = Checkpoint(directory)
    reader = WeightReader(checkpoint, family.vision_sources(config, checkpoint.names()))
    limits = Limits(max_tokens=2048, max_batch=1, max_tiles=2, max_picture_tokens=2048)
    write_engine(vision_graph(config.vision, limits), reader, out / "vision.onnx", lambda fraction: None)


def picture(tower: Tower, directory: Path) -> np.ndarray:
    """Pixels of one piece, random, as its family cuts them."""
    from PIL import Image

    family, config = family_of(directory)[0], read_tower(directory)
    colours = np.random.default_rng(SEED).integers(0, 256, (tower.side, tower.side, 3), np.uint8)
    return family.cut(Image.fromarray(colours), config).pixels[:1]


@dataclass(frozen=True)
class OurTower:
    """Called, it is loaded."""

    directory: Path
    built: Path
    threads: int

    def __call__(self) -> "OurEncoder":
        return OurEncoder(self)


class OurEncoder:
    def __init__(self, tower: OurTower) -> None:
        from engine.runtime.vision import VisionEncoder

        self._encoder = VisionEncoder(
            OnnxRuntimeExecutor.load(tower.built / "vision.onnx", tower.threads), read_tower(tower.directory).vision
        )

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """-> [V,C]"""
        return np.asarray(self._encoder.encode(pixels))


@dataclass(frozen=True)
class TorchTower:
    """transformers' own, with sdpa attention; called, it is loaded. is_openvino: converted and compiled by that."""

    directory: Path
    model_type: str
    threads: int
    is_openvino: bool = False

    def __call__(self) -> "TorchEncoder":
        return TorchEncoder(self)


class TorchEncoder:
    def __init__(self, tower: TorchTower) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        torch.set_num_threads(tower.threads)
        torch.set_grad_enabled(False)
        self._torch, self._tower = torch, tower
        self._model = AutoModelForImageTextToText.from_pretrained(
            tower.directory, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._compiled: Any = None

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """-> [V,C]"""
        torch = self._torch
        module, given = self._module(pixels)
        if self._tower.is_openvino:
            if self._compiled is None:
                import openvino

                converted = openvino.convert_model(module, example_input=given)
                settings = {"INFERENCE_NUM_THREADS": self._tower.threads, "INFERENCE_PRECISION_HINT": "f32"}
                self._compiled = openvino.compile_model(converted, "CPU", settings)
                self._model = None
            features = torch.from_numpy(self._compiled(given.numpy())[0])
        else:
            features = module(given)
        return features.reshape(-1, features.shape[-1]).numpy()

    def _module(self, pixels: np.ndarray) -> tuple[Any, Any]:
        """What makes features of one tensor, and that tensor."""
        torch, model = self._torch, self._model and self._model.model
        given = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._tower.model_type.startswith("qwen"):
            _, rows, columns, merged, values = pixels.shape
            side = int(merged**0.5)
            grid = torch.tensor([[1, rows * side, columns * side]])
            return _wrapped(torch, lambda x: model.visual(x, grid_thw=grid).pooler_output, model), given.reshape(
                -1, values
            )
        if self._tower.model_type == "internvl":
            return _wrapped(torch, lambda x: model.get_image_features(x).pooler_output, model), given

        def siglip(x: Any) -> Any:
            hidden = model.vision_tower(x, output_hidden_states=True).hidden_states[-1]
            return model.multi_modal_projector(hidden)

        return _wrapped(torch, siglip, model), given


def _wrapped(torch: Any, function: Callable[[Any], Any], model: Any) -> Any:
    """A module, which is what OpenVINO converts."""

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return function(x)

    return Wrapped()
