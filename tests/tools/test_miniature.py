"""The miniature models: checkpoints are as published, and training sees what the engine sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.build.builder import build_pair
from engine.build.tokenizer import write_tokenizer as normalise_tokenizer
from engine.config import BuildConfig
from engine.families import family_of
from engine.families.internvl2.prompt import render_prompt
from engine.runtime.pipeline import SglPipeline
from engine.runtime.tokenizer import Tokenizer
from tests.oracle import load_oracle
from tests.tolerance import TOLERANCE
from tools.miniature import language_stage, vision_stage
from tools.miniature.checkpoint import CONFIGS, Miniature, export, make_config, restore
from tools.miniature.grade import engine_answers
from tools.miniature.language_stage import Encoder, make_batch
from tools.miniature.model import VISUAL_MARK, WORD_MARK, WORD_STD
from tools.miniature.questions import (
    LONGEST_ANSWER,
    Kind,
    ask,
    exam,
    picture,
)
from tools.miniature.scenes import CELL, SIDE, TILE, TILES, Split, draw, make_scene
from tools.random_checkpoint import tensor_shapes

torch.set_num_threads(1)


TINY = make_config(vision=(32, 1, 2), language=(48, 3, 3))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small` and `large`, tiny and with random weights."""
    directory = tmp_path_factory.mktemp("miniature")
    for seed, name in enumerate(("small", "large")):
        torch.manual_seed(seed)
        model = Miniature(TINY)
        # Short embeddings and random outputs: copying under a tied head would make each token answer with itself.
        model.language_model.model.embed_tokens.weight.data.mul_(0.05)
        torch.nn.init.constant_(model.language_model.model.norm.weight, 6.0)
        for layer in model.language_model.model.layers:
            torch.nn.init.orthogonal_(layer.self_attn.o_proj.weight)
            torch.nn.init.orthogonal_(layer.mlp.down_proj.weight)
        export(model, directory / name)
    return directory


def test_training_reads_the_ids_of_the_engine(checkpoints: Path, tmp_path: Path) -> None:
    """Through the checkpoint's tokenizer as the build normalises it, and its own prompt."""
    family, published = family_of(checkpoints / "small")
    config = family.read_config(checkpoints / "small", published)
    normalise_tokenizer(checkpoints / "small", tmp_path)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    encoder = Encoder()
    for kind in Kind:
        question = ask(kind, make_scene(1), np.random.default_rng(1))
        text = render_prompt(config, question.text, [config.most_tokens()]).text
        assert tokenizer.encode(text) == [*encoder.prefix, *encoder.tail(question.text)]
        said = encoder.answer(question.answer)
        assert tokenizer.decode(said) == question.answer
        assert len(said) <= LONGEST_ANSWER


def test_training_sees_the_tiles_of_the_engine(checkpoints: Path) -> None:
    family, published = family_of(checkpoints / "small")
    config = family.read_config(checkpoints / "small", published)
    image = draw(2, make_scene(2))
    pieces = family.cut(Image.fromarray(image), config)
    np.testing.assert_allclose(vision_stage.to_tiles(image[None]).numpy(), pieces.pixels, atol=1e-6)
    boxes = pieces.boxes * SIDE
    for item in make_scene(2):
        left, top, right, bottom = item.box()
        cells = np.array([left, top, right + 1, bottom + 1])
        np.testing.assert_allclose(boxes[vision_stage.token_of(item)], cells * CELL)


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_are_those_of_a_published_checkpoint(name: str) -> None:
    tensors = Miniature(CONFIGS[name]).tensors()
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == tensor_shapes(CONFIGS[name])


def test_language_model_is_llama(checkpoints: Path) -> None:
    """Against transformers, on the checkpoint's own weights; packed questions give what each gives alone."""
    model, encoder = restore(checkpoints / "small"), Encoder()
    oracle = load_oracle(checkpoints / "small", TINY["llm_config"])
    gallery = language_stage.make_gallery(model.vision_model, range(3))
    batch = make_batch(encoder, gallery, np.random.default_rng(0), size=2)
    with torch.no_grad():
        embeds = language_stage.embed(model, encoder, batch.ids, batch.features)
        packed = model.language_model(embeds, batch.positions, batch.mask)
        for question in (0, 5, 31):
            scene = int((batch.asked == question).any(1).nonzero())
            rows = ((batch.asked[scene] == -1) | (batch.asked[scene] == question)).nonzero().flatten()
            alone = oracle.model(inputs_embeds=embeds[scene, rows][None]).last_hidden_state[0]
            torch.testing.assert_close(packed[scene, rows], alone, **TOLERANCE["fp32"])


def test_the_engine_answers_like_torch(checkpoints: Path, tmp_path: Path) -> None:
    """Token by token, through the ordinary build, for a question of each kind and both models of a pair."""
    build_pair(BuildConfig(checkpoints / "small", checkpoints / "large", tmp_path, max_tokens=256, max_batch=3))
    pipeline, encoder, questions = SglPipeline.load(tmp_path, threads=1), Encoder(), exam(Split.TEST, len(Kind))
    for name, large in (("small", False), ("large", True)):
        model, firsts = restore(checkpoints / name), set()
        for (seed, question), answer in zip(questions, engine_answers(pipeline, questions, large), strict=True):
            tiles = vision_stage.to_tiles(np.array(picture(seed))[None])
            said = language_stage.answer(model, encoder, question.text, tiles)
            assert tuple(said) == tuple(token for token in answer.token_ids if token not in encoder.stops)
            ids = torch.tensor([[*encoder.prefix, *encoder.tail(question.text)]])
            mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
            with torch.no_grad():
                embeds = language_stage.embed(model, encoder, ids, vision_stage.encode(model.vision_model, tiles))
                hidden = model.language_model(embeds, torch.arange(ids.shape[1])[None], mask)[0, -1]
                first = model.language_model.logits(hidden).softmax(-1).max().item()
            assert answer.probabilities[0] == pytest.approx(first, rel=1e-3)
            firsts.add(round(first, 6))
        assert len(firsts) == len(Kind), "the same answer to every question would prove little"


def test_marks_lead_words_to_the_picture() -> None:
    """Before any training, a head that seeks visual tokens finds them, and among them those with the word's meaning."""
    torch.manual_seed(0)
    model, encoder = Miniature(TINY), Encoder()
    size, number = TINY["llm_config"]["hidden_size"], encoder.tail("Colour of 37?")[2]
    words = WORD_STD * torch.randn(TINY["llm_config"]["vocab_size"], size)
    tiles = torch.zeros(TILES**2, 3, TILE, TILE)
    language_stage.start(model, words, tiles)
    decoder = model.language_model.model
    ids = torch.tensor([[*encoder.prefix, *encoder.tail("Colour of 37?")]])
    embeds = decoder.embed_tokens(ids).detach()
    visual = (ids[0] == encoder.image_token).nonzero().flatten()
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
