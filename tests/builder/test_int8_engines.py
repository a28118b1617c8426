"""int8 engines as a whole, against transformers and float32, and whether their reports are true."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.bindings import PIXEL_VALUES, SCORING_ENGINE
from engine.build.builder import build_pair
from engine.build.calibrate import language_inputs, vision_inputs
from engine.build.checkpoint import Checkpoint
from engine.build.language import language_graph
from engine.build.quantize import MatrixKernel, pack
from engine.build.scoring import scoring_graph
from engine.build.targets.onnxruntime import write_engine, write_scoring_engine
from engine.build.vision import vision_graph
from engine.build.weights import WeightReader
from engine.config import BuildConfig, ExitConfig, SamplingConfig
from engine.engine_directory import read_manifest
from engine.families import family_of
from engine.runtime.answer import AnsweredBy
from engine.runtime.language import LanguageModel
from engine.runtime.loading import load
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens
from engine.target import Precision, Target
from tests.builder.test_quantize import dequantize, initializers, quantize_activations, read_report, run
from tests.oracle import LIMITS, Pair, checkpoint_config, embed, load_oracle
from tests.prefilled import Prefilled, step
from tools.make_random_pair import write_pair
from tools.random_checkpoint import write_checkpoint


@dataclass(frozen=True)
class Built:
    """Vision engines of both precisions and an int8 language engine, all of one checkpoint."""

    directory: Path
    pixels: np.ndarray
    language: Pair


def build(directory: Path, checkpoint: Path, published: dict[str, Any]) -> Built:
    family, config_json = family_of(checkpoint)
    config = family.read_config(checkpoint, config_json)
    pixels = vision_inputs(family, config)
    tensors = Checkpoint(checkpoint)
    reader = WeightReader(tensors, family.vision_sources(config, tensors.names()))
    for name, calibration in (("vision", pixels), ("float32", None)):
        graph = vision_graph(config.vision, LIMITS)
        write_engine(graph, reader, directory / f"{name}.onnx", lambda fraction: None, calibration)
    features = run(directory / "float32.onnx", **pixels)
    reader = WeightReader(tensors, family.language_sources(config, tensors.names()))
    path = directory / "language.onnx"
    inputs = language_inputs(config.language, features.reshape(-1, features.shape[-1]), 1)
    write_engine(language_graph(config.language, LIMITS, (2,), scores=True), reader, path, lambda f: None, inputs)
    write_scoring_engine(scoring_graph(config.language, LIMITS, (2,)), directory)
    executor, scoring = (load(Target.ONNXRUNTIME, directory / name, threads=1) for name in ("language", SCORING_ENGINE))
    engine = LanguageModel(executor, config.language, (2,), scores=True, scoring=scoring, places=4)
    return Built(directory, pixels[PIXEL_VALUES], Pair(engine, load_oracle(checkpoint, published["llm_config"])))


@pytest.fixture(scope="module", params=["qwen2", "phi3"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    published = checkpoint_config(request.param)
    write_checkpoint(checkpoint, published, seed=7)
    return build(tmp_path_factory.mktemp("built"), checkpoint, published)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


def make_prompt(seed: int, length: int = 60, visual: int = 32) -> PromptTokens:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((visual, 48), dtype=np.float32)
    return PromptTokens(rng.integers(0, 131, length), np.arange(8, 8 + visual), features)


@torch.no_grad()
def test_language_engine_stays_close_to_transformers(built: Built) -> None:
    """Random weights in five layers: logits of prefill and decode, and whom the importance ranks highest."""
    pair, cosines, overlaps = built.language, [], []
    answer = np.array([5, 17, 99])
    for seed in range(4):
        prompt = make_prompt(seed)
        rows = np.arange(prompt.visual_positions[-1] + 1, len(prompt.ids))
        one = Prefilled(pair.engine, prompt, len(answer), scored=rows, prune_layers=pair.engine.prune_layers)
        actual = one.decode(answer, scored=True)
        ids = np.concatenate([prompt.ids, answer])
        embeds = embed(pair.oracle, ids, prompt.visual_positions, prompt.features)
        expected = pair.oracle(inputs_embeds=embeds, use_cache=False, output_attentions=True)
        logits = expected.logits[0, len(prompt.ids) - 1 :].numpy()
        cosines += [cosine(*rows) for rows in zip(actual, logits, strict=True)]
        received = torch.stack(expected.attentions)[:, 0, :, rows[0] :, prompt.visual_positions].double()
        importance = received.sum((0, 1, 2)).numpy()
        scores = one.visual_scores().sum(0)
        one.close()
        overlaps.append(len(np.intersect1d(np.argsort(-scores)[:8], np.argsort(-importance)[:8])) / 8)
        assert_allclose(scores, importance, rtol=0.05)
    assert min(cosines) > 0.999
    assert np.mean(overlaps) >= 0.9


def say(engine: LanguageModel, prompts: list[PromptTokens]) -> list[tuple[np.ndarray, ...]]:
    """Of each: logits after its prompt and after each step, what was scored, logits of the consistency pass."""
    answer, scored = np.array([5, 17, 99]), np.arange(40, 44)
    several = [
        Prefilled(engine, prompt, len(answer), scored=scored, prune_layers=engine.prune_layers) for prompt in prompts
    ]
    steps = [[one.logits for one in several]]
    steps += [[*step(several, int(token), [True] * len(several))] for token in answer]
    said = [
        (np.stack([row[index] for row in steps]), one.visual_scores(), one.score(np.arange(0, 32, 3), answer))
        for index, one in enumerate(several)
    ]
    for one in several:
        one.close()
    return said


def test_company_changes_no_bit_of_an_answer(built: Built) -> None:
    """Alone and beside prompts of other lengths, one of them louder than all: it would coarsen a scale in common."""
    engine = built.language.engine
    prompts = [make_prompt(seed, length) for seed, length in enumerate((60, 44, 53, 60))]
    prompts[3] = replace(prompts[3], features=1000 * prompts[3].features)
    alone = [say(engine, [prompt])[0] for prompt in prompts]
    for order in ((0, 1, 2, 3), (3, 2), (1, 1, 0)):
        for index, together in zip(order, say(engine, [prompts[index] for index in order]), strict=True):
            for ours, expected in zip(together, alone[index], strict=True):
                assert_array_equal(ours, expected)


def test_tiles_are_encoded_alone_as_together(built: Built) -> None:
    tiles = built.pixels
    together = run(built.directory / "vision.onnx", pixel_values=tiles)
    for index in range(len(tiles)):
        alone = run(built.directory / "vision.onnx", pixel_values=tiles[index : index + 1])
        assert_array_equal(alone[0], together[index])


def test_report_is_true_of_the_whole_engine(built: Built) -> None:
    report = read_report(built.directory / "vision.onnx")
    features = [run(built.directory / f"{name}.onnx", pixel_values=built.pixels) for name in ("vision", "float32")]
    assert report["output"] == "visual_features"
    assert report["rows"] == features[0].size // features[0].shape[-1]
    actual, expected = (rows.reshape(-1, rows.shape[-1]).astype(np.float64) for rows in features)
    lengths = np.linalg.norm(actual, axis=1), np.linalg.norm(expected, axis=1)
    cosines = (actual * expected).sum(1) / lengths[0] / lengths[1]
    assert report["fidelity"]["cosine"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert 0.999 < report["fidelity"]["cosine"] < 1
    errors = np.linalg.norm(actual - expected, axis=1) / lengths[1]
    assert report["fidelity"]["relative_error"] == pytest.approx(errors.mean(), abs=5e-4)


@pytest.mark.parametrize("kernel", [MatrixKernel.PER_ROW, MatrixKernel.PER_BLOCK])
def test_report_is_true_of_a_matrix(built: Built, kernel: MatrixKernel) -> None:
    """The second layer's fc1: its input tapped from the whole float32 engine, its kernels recomputed in float64."""
    name = "encoder.layers.1.mlp.fc1.weight"
    model = onnx.load(built.directory / "float32.onnx")
    (node,) = (node for node in model.graph.node if name in node.input)
    model.graph.output.insert(0, onnx.ValueInfoProto(name=node.input[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = session.run([node.input[0]], {"pixel_values": built.pixels})[0]
    matrix = initializers(built.directory / "float32.onnx")[name]
    packed = pack(kernel, matrix)
    actual = quantize_activations(kernel, x) @ dequantize(kernel, packed.data, packed.scale, len(matrix))
    expected = x.astype(np.float64) @ matrix
    error = np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    entry = read_report(built.directory / "vision.onnx")["matrices"][name]
    assert entry["fidelity"][kernel]["relative_error"] == pytest.approx(error.mean(), rel=0.02)


def test_every_matrix_is_reported_and_int8(built: Built) -> None:
    for path, count in ((built.directory / "vision.onnx", 2 * 4 + 2), (built.directory / "language.onnx", 5 * 7 + 1)):
        report = read_report(path)
        weights = initializers(path)
        assert len(report["matrices"]) == count
        for name, entry in report["matrices"].items():
            assert entry["kernel"] in ("per_row", "per_block")
            assert name not in weights
            assert weights[f"{name}.int8"].dtype == (np.int8 if entry["kernel"] == "per_row" else np.uint8)
        assert not [node.op_type for node in onnx.load(path).graph.node if node.op_type == "MatMul"]


def test_building_again_gives_the_same_files(tmp_path: Path) -> None:
    checkpoint, published = tmp_path / "checkpoint", checkpoint_config("qwen2")
    write_checkpoint(checkpoint, published, seed=7)
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        build(tmp_path / name, checkpoint, published)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert files[0] == files[1]
    assert len(files[0]) == 9


def test_pair_of_int8_engines_answers(tmp_path: Path) -> None:
    write_pair(tmp_path, seed=5)
    out = tmp_path / "out"
    build_pair(BuildConfig(tmp_path / "small", tmp_path / "large", out, precision=Precision.INT8, max_tokens=1024))
    files = {file for component in read_manifest(out).components.values() for file in component.files}
    for model in ("small", "large"):
        for name, output in (("vision", "visual_features"), ("rank0/language", "logits")):
            assert f"{model}/{name}.quantization.json" in files
            report = read_report(out / model / f"{name}.onnx")
            assert report["output"] == output
            assert report["fidelity"]["cosine"] > 0.999
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 320, 3), dtype=np.uint8))
    never = ExitConfig(exit_threshold=1.01)
    pipeline = SglPipeline.load(out, threads=1)
    answer = pipeline.answer(picture, "What is this?", exit=never, sampling=SamplingConfig(max_new_tokens=4))
    assert answer.answered_by is AnsweredBy.LARGE
    assert np.isfinite(answer.probabilities).all()
