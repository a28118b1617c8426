"""An engine directory's manifest to test with; its two models are tiny and of odd sizes."""

from dataclasses import replace

from engine.config import ExitConfig, GuidanceConfig, Precision, ScoreRows, Target
from engine.manifest import FORMAT_VERSION, ComponentRecord, EngineModel, Manifest
from engine.model_config import (
    LanguageConfig,
    ModelConfig,
    Norm,
    PromptConfig,
    RopeConfig,
    RopeScaling,
    TilingConfig,
)
from tests.tiny_vision import TINY_VISION


def example_model(name: str, prune_layers: tuple[int, ...] = ()) -> EngineModel:
    rope = RopeConfig(
        theta=1e6, max_positions=77, scaling=RopeScaling.LONG, short_factor=(1.0, 1.25), long_factor=(2.5,)
    )
    language = LanguageConfig(
        hidden_size=24,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=4,
        intermediate_size=40,
        vocab_size=101,
        norm_eps=1e-5,
        rope=rope,
    )
    vision = replace(TINY_VISION, norm=Norm.RMS, output_size=language.hidden_size)
    prompt = PromptConfig("internlm2-chat", system_message="你好 “quoted”")
    config = ModelConfig("internvl2", name, language, vision, TilingConfig(max_tiles=3), prompt)
    return EngineModel(config, checkpoint_sha256="ab" * 32, prune_layers=prune_layers, scores=not prune_layers)


def example_manifest(components: dict[str, ComponentRecord]) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        engine_version="0.1.0",
        created="2025-01-02T03:04:05+00:00",
        target=Target.ONNXRUNTIME,
        precision=Precision.INT8,
        max_tokens=513,
        max_batch=3,
        world_size=1,
        versions={"onnxruntime": "1.31.0"},
        models={"small": example_model("one"), "large": example_model("two", (1, 2))},
        components=components,
        guidance=GuidanceConfig(average_retention=1, prune_layer=2, score_rows=ScoreRows.LAST_PROMPT),
        exit=ExitConfig(exit_threshold=0.75),
    )
