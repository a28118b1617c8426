"""The miniature models: checkpoints are as published, and training sees what the engine sees."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration

from engine.build.builder import build_pair
from engine.build.tokenizer import write_tokenizer as normalise_tokenizer
from engine.config import BuildConfig
from engine.families import family_of
from engine.runtime.pipeline import SglPipeline
from engine.runtime.tokenizer import Tokenizer
from tests.oracle import load_oracle
from tests.tolerance import TOLERANCE
from tools.miniature import language_stage, vision_stage
from tools.miniature.checkpoint import Miniature, export, restore
from tools.miniature.configs import CONFIGS, make_config, make_native_config
from tools.miniature.grade import engine_answers
from tools.miniature.language_stage import make_batch
from tools.miniature.model import VISUAL_MARK, WORD_MARK, WORD_STD
from tools.miniature.questions import (
    LONGEST_ANSWER,
    Kind,
    ask,
    exam,
    picture,
)
from tools.miniature.reader import Reader
from tools.miniature.scenes import CELL, SIDE, SLOT, Split, draw, make_scene
from tools.random_checkpoint import tensor_shapes

torch.set_num_threads(1)


TINY = make_config(vision=(32, 1, 2), language=(48, 3, 3))
NATIVE = make_native_config(vision=(32, 1, 2), language=(48, 3, 3))
NAMES = ("small", "large", "native")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small` and `large` in InternVL2's layout and `native` in Qwen2-VL's, tiny and with random weights."""
    directory = tmp_path_factory.mktemp("miniature")
    for seed, (name, config) in enumerate(zip(NAMES, (TINY, TINY, NATIVE), strict=True)):
        torch.manual_seed(seed)
        model = Miniature(config)
        # Short embeddings and random outputs: copying under a tied head would make each token answer with itself.
        model.language_model.model.embed_tokens.weight.data.mul_(0.05)
        torch.nn.init.constant_(model.language_model.model.norm.weight, 6.0)
        for layer in model.language_model.model.layers:
            torch.nn.init.orthogonal_(layer.self_attn.o_proj.weight)
            torch.nn.init.orthogonal_(layer.mlp.down_proj.weight)
        export(model, directory / name)
    return directory


@pytest.mark.parametrize("name", ["small", "native"])
def test_training_reads_the_ids_of_the_engine(checkpoints: Path, tmp_path: Path, name: str) -> None:
    """Through the checkpoint's tokenizer as the build normalises it, and its own prompt."""
    family, published = family_of(checkpoints / name)
    config = family.read_config(checkpoints / name, published)
    normalise_tokenizer(checkpoints / name, tmp_path)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    reader = Reader(published)
    for kind in Kind:
        question = ask(kind, make_scene(1), np.random.default_rng(1))
        text = family.render_prompt(config, question.text, [(SIDE // SLOT) ** 2]).text
        assert tokenizer.encode(text) == [*reader.prefix, *reader.tail(question.text)]
        said = reader.answer(question.answer)
        assert tokenizer.decode(said) == question.answer
        assert len(said) <= LONGEST_ANSWER


@pytest.mark.parametrize("name", ["small", "native"])
def test_training_sees_the_pictures_of_the_engine(checkpoints: Path, name: str) -> None:
    family, published = family_of(checkpoints / name)
    reader, image = Reader(published), draw(2, make_scene(2))
    pieces = family.cut(Image.fromarray(image), family.read_config(checkpoints / name, published))
    np.testing.assert_array_equal(reader.pixels(image[None])[0].numpy(), pieces.pixels)
    boxes = pieces.boxes * SIDE
    for item in make_scene(2):
        left, top, right, bottom = item.box()
        cells = np.array([left, top, right + 1, bottom + 1])
        np.testing.assert_allclose(boxes[reader.token_of(item)], cells * CELL)


def test_training_sees_parts_of_scenes(checkpoints: Path) -> None:
    """A model that takes pictures of any size: pixels and labels of a window are those of the whole there."""
    reader = Reader(NATIVE)
    rng = np.random.default_rng(0)
    pixels, labels = vision_stage.batch(reader, range(2))
    whole = labels.unflatten(1, (SIDE // SLOT, SIDE // SLOT))
    for _ in range(8):
        window = vision_stage.some_window(rng)
        part, said = vision_stage.batch(reader, range(2), window)
        rows = slice(window.row, window.row + window.rows)
        columns = slice(window.column, window.column + window.columns)
        assert torch.equal(part, pixels[:, :, rows, columns])
        assert torch.equal(said, whole[:, rows, columns].flatten(1, 2))


def test_a_native_model_turns_by_row_and_column() -> None:
    """Row by row of the picture, and text behind the longer side."""
    reader = Reader(NATIVE)
    first, side = reader.prefix.index(reader.image_token), SIDE // SLOT
    shown = reader.places[np.array(reader.prefix) == reader.image_token]
    expected = [(first, first + row, first + column) for row in range(side) for column in range(side)]
    assert shown.tolist() == [list(place) for place in expected]
    assert reader.places[-1].tolist() == [first + side] * 3
    assert reader.next == first + side + 1


@pytest.mark.parametrize("name", ["small", "large"])
def test_tensors_are_those_of_a_published_checkpoint(name: str) -> None:
    tensors = Miniature(CONFIGS[name]).tensors()
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == tensor_shapes(CONFIGS[name])


def test_language_model_is_llama(checkpoints: Path) -> None:
    """Against transformers, on the checkpoint's own weights; packed questions give what each gives alone."""
    model = restore(checkpoints / "small")
    oracle = load_oracle(checkpoints / "small", TINY["llm_config"])
    gallery = language_stage.make_gallery(model, range(3))
    batch = make_batch(model.reader, gallery, np.random.default_rng(0), size=2)
    with torch.no_grad():
        embeds = language_stage.embed(model, batch.ids, batch.features)
        packed = model.language_model(embeds, batch.positions, batch.mask)
        for question in (0, 5, 31):
            scene = int((batch.asked == question).any(1).nonzero())
            rows = ((batch.asked[scene] == -1) | (batch.asked[scene] == question)).nonzero().flatten()
            alone = oracle.model(inputs_embeds=embeds[scene, rows][None]).last_hidden_state[0]
            torch.testing.assert_close(packed[scene, rows], alone, **TOLERANCE["fp32"])


def test_a_native_model_is_qwen2_vl(checkpoints: Path) -> None:
    """Against transformers' own classes on the checkpoint as saved: features of a scene and logits behind a prompt."""
    model = restore(checkpoints / "native")
    oracle = Qwen2VLForConditionalGeneration.from_pretrained(
        checkpoints / "native", dtype=torch.float32, attn_implementation="eager"
    )
    reader, side = model.reader, SIDE // SLOT
    pixels = reader.pixels(draw(3, make_scene(3))[None])
    tail = reader.tail("Colour of 37?")
    with torch.no_grad():
        features = model.vision_model(pixels)
        grid = torch.tensor([[1, 2 * side, 2 * side]])
        shown = oracle.model.visual(pixels.flatten(0, 4), grid_thw=grid).pooler_output
        torch.testing.assert_close(features[0], shown, **TOLERANCE["fp32"])
        ids = torch.tensor([[*reader.prefix, *tail]])
        kinds = (ids == reader.image_token).long()
        expected = oracle(
            input_ids=ids, pixel_values=pixels.flatten(0, 4), image_grid_thw=grid, mm_token_type_ids=kinds
        ).logits[0, -1]
    torch.testing.assert_close(language_stage.next_logits(model, tail, features), expected, **TOLERANCE["fp32"])


@pytest.mark.parametrize("small", ["small", "native"])
def test_the_engine_answers_like_torch(checkpoints: Path, tmp_path: Path, small: str) -> None:
    """Token by token, through the ordinary build, for a question of each kind and both models of a pair."""
    build_pair(BuildConfig(checkpoints / small, checkpoints / "large", tmp_path, max_tokens=256, max_batch=3))
    pipeline, questions = SglPipeline.load(tmp_path, threads=1), exam(Split.TEST, len(Kind))
    for name, large in ((small, False), ("large", True)):
        model, firsts = restore(checkpoints / name), set()
        reader = model.reader
        for (seed, question), answer in zip(questions, engine_answers(pipeline, questions, large), strict=True):
            pixels = reader.pixels(np.array(picture(seed))[None])
            said = language_stage.answer(model, question.text, pixels)
            assert tuple(said) == tuple(token for token in answer.token_ids if token not in reader.stops)
            with torch.no_grad():
                features = model.vision_model(pixels)
            logits = language_stage.next_logits(model, reader.tail(question.text), features)
            first = logits.softmax(-1).max().item()
            assert answer.probabilities[0] == pytest.approx(first, rel=1e-3)
            firsts.add(round(first, 6))
        assert len(firsts) == len(Kind), "the same answer to every question would prove little"


@pytest.mark.parametrize("config", [TINY, NATIVE], ids=["internvl2", "qwen2-vl"])
def test_marks_lead_words_to_the_picture(config: dict[str, Any]) -> None:
    """Before any training, a head that seeks visual tokens finds them, and among them those with the word's meaning."""
    torch.manual_seed(0)
    model = Miniature(config)
    reader, language = model.reader, model.language_config()
    size, number = language.hidden_size, reader.tail("Colour of 37?")[2]
    words = WORD_STD * torch.randn(language.vocab_size, size)
    language_stage.start(model, words, reader.pixels(np.zeros((1, SIDE, SIDE, 3), np.uint8)))
    decoder = model.language_model.model
    ids = torch.tensor([[*reader.prefix, *reader.tail("Colour of 37?")]])
    embeds = decoder.embed_tokens(ids).detach()
    visual = (ids[0] == reader.image_token).nonzero().flatten()
    noise = torch.randn(len(visual), size)
    noise[20] = embeds[0, (ids[0] == number).nonzero()[0, 0]]
    noise[:, WORD_MARK], noise[:, VISUAL_MARK] = 0, embeds[0, 0, WORD_MARK]
    embeds[0, visual] = noise
    attention = decoder.layers[0].self_attn
    query, key = (
        project(embeds[0] / embeds[0].norm(dim=-1, keepdim=True) * size**0.5).unflatten(-1, (3, -1))[:, 0]
        for project in (attention.q_proj, attention.k_proj)
    )
    row = int((ids[0] == number).nonzero()[0, 0])
    weights = ((query[row] @ key[: row + 1].T) / (size / 3) ** 0.5).softmax(-1)
    assert weights[visual].sum() > 0.9
    assert weights[visual].argmax() == 20
