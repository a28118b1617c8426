"""The miniature pair: scenes and questions are as they say, training sees what the engine sees, and steps learn."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.build.builder import build_pair
from engine.build.tokenizer import write_tokenizer as normalise_tokenizer
from engine.config import BuildConfig
from engine.families import family_of
from engine.families.internvl2 import render_prompt, split_tiles
from engine.runtime.pipeline import SglPipeline
from engine.runtime.tokenizer import Tokenizer
from tests.oracle import load_oracle
from tests.tolerance import TOLERANCE
from tools.miniature import language_stage, vision_stage
from tools.miniature.checkpoint import CONFIGS, Miniature, export, make_config, restore
from tools.miniature.grade import engine_answers
from tools.miniature.language_stage import HIDDEN, Encoder, make_batch, part_of
from tools.miniature.model import VISUAL_MARK, WORD_MARK, WORD_STD
from tools.miniature.optimiser import Optimiser
from tools.miniature.questions import (
    LONGEST_ANSWER,
    Kind,
    Question,
    ask,
    box_text,
    exam,
    overlap,
    picture,
    read_box,
    render,
    score,
)
from tools.miniature.scenes import CELL, COLOURS, SIDE, SLOTS, TILE, TILES, Split, draw, make_crowd, make_scene
from tools.miniature.train import LANGUAGE_SEEDS, RECIPES, RUNS, SCENES, Stage, Steps
from tools.miniature.vocabulary import COUNTS
from tools.random_checkpoint import tensor_shapes
from tools.train_miniature import main

torch.set_num_threads(1)


def test_no_scene_is_in_two_splits() -> None:
    splits = sorted((split.value for split in Split), key=lambda seeds: seeds.start)
    assert all(one.stop <= two.start for one, two in itertools.pairwise(splits))


def test_training_stays_in_its_split() -> None:
    """Both stages of both models, for every seed and more steps than any budget allows."""
    ranges = []
    for recipe in RECIPES.values():
        for stage in (0, LANGUAGE_SEEDS):
            ranges += [
                range(recipe.first_seed + stage + seed * SCENES, recipe.first_seed + stage + (seed + 1) * SCENES)
                for seed in RUNS
            ]
    ranges.sort(key=lambda seeds: seeds.start)
    assert all(one.stop <= two.start for one, two in itertools.pairwise(ranges))
    assert all(seeds.start in Split.TRAINING.value and seeds[-1] in Split.TRAINING.value for seeds in ranges)


@given(seed=st.sampled_from(list(Split)).flatmap(lambda split: st.integers(split.value[0], split.value[-1])))
@settings(max_examples=30, deadline=None)
def test_objects_do_not_meet(seed: int) -> None:
    for items in (make_scene(seed), make_crowd(seed)):
        assert len({vision_stage.token_of(item) for item in items}) == len(items)
        for item in items:
            assert all(0 <= edge < SIDE // CELL for edge in item.box())
            assert item.radius + max(abs(item.right), abs(item.down)) <= CELL
    scene = make_scene(seed)
    assert len({(item.colour, item.shape) for item in scene}) == len({item.number for item in scene}) == len(scene)


def test_an_object_is_drawn_where_it_says() -> None:
    """A good part of each object's box has its colour."""
    items = make_scene(3)
    image = draw(3, items)
    assert np.array_equal(image, draw(3, items))
    for item in items:
        left, top, right, bottom = (edge * CELL for edge in item.box())
        part = image[top : bottom + CELL, left : right + CELL].astype(int)
        assert (np.abs(part - COLOURS[item.colour]).max(-1) < 25).mean() > 0.2


@pytest.mark.parametrize("kind", Kind)
def test_an_answer_follows_from_the_scene(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    for seed in range(40):
        items = make_scene(seed)
        question = ask(kind, items, rng)
        words = question.text.removesuffix("?").replace(",", "").split()
        numbers = {str(item.number): item for item in items}
        match question.kind:
            case Kind.NUMBER:
                told = [item for item in items if [item.colour, item.shape][: len(words) - 2] == words[2:]]
                assert told == [numbers[question.answer]]
            case Kind.COLOUR | Kind.SHAPE:
                assert question.answer == getattr(numbers[words[-1]], kind)
            case Kind.LOCATE:
                assert read_box(question.answer) == numbers[words[-1]].box()
            case Kind.COMPARE:
                loser = words[1] if words[3] == question.answer else words[3]
                assert numbers[question.answer].row < numbers[loser].row
            case Kind.COUNT:
                alike = [i for i in items if words[-1] in (i.colour, i.shape + "s")]
                assert question.answer == COUNTS[len(alike)]


boxes = st.tuples(*[st.integers(0, 7)] * 2, *[st.integers(8, 23)] * 2)


@given(one=boxes, two=boxes)
def test_overlap_is_that_of_the_cells(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> None:
    def cells(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2] + 1) for y in range(box[1], box[3] + 1)}

    assert overlap(one, two) == pytest.approx(len(cells(one) & cells(two)) / len(cells(one) | cells(two)))
    assert read_box(box_text(one)) == one


@pytest.mark.parametrize(
    ("given_", "right"), [("C4:E6", 1), ("C4:E5", 1), ("C4:E9", 1), ("C4:D5", 0), ("E4:C6", 0), ("red", 0), ("", 0)]
)
def test_a_box_is_right_if_it_overlaps_enough(given_: str, right: int) -> None:
    assert score(Question(Kind.LOCATE, "Where is 37?", "C4:E6"), given_) == right


def test_other_answers_are_right_only_if_exact() -> None:
    question = Question(Kind.COLOUR, "Colour of 37?", "red")
    assert [score(question, text) for text in ("red", "Red", "red ", "green")] == [1, 0, 0, 0]


def test_a_rendered_scene_can_be_asked_about() -> None:
    image, question = render(5, Kind.LOCATE)
    assert image.size == (SIDE, SIDE)
    assert question.text.startswith("Where is ")
    assert {seed for seed, _ in exam(Split.TEST, 12)} <= set(Split.TEST.value[:12])


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
        text = render_prompt(config, question.text, [TILES**2]).text
        assert tokenizer.encode(text) == [*encoder.prefix, *encoder.tail(question.text)]
        said = encoder.answer(question.answer)
        assert tokenizer.decode(said) == question.answer
        assert len(said) <= LONGEST_ANSWER


def test_training_sees_the_tiles_of_the_engine(checkpoints: Path) -> None:
    family, published = family_of(checkpoints / "small")
    config = family.read_config(checkpoints / "small", published)
    image = draw(2, make_scene(2))
    tiles = split_tiles(Image.fromarray(image), config)
    np.testing.assert_allclose(vision_stage.to_tiles(image[None]).numpy(), tiles.pixel_values, atol=1e-6)
    boxes = family.token_boxes(config, tiles.boxes) * SIDE
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


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_partial_scene_shows_what_is_asked_about(hidden: float) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        items = make_scene(seed)
        left, seen = part_of(items, hidden, rng)
        objects = {vision_stage.token_of(item) for item in items}
        assert set(left) <= set(items)
        assert {vision_stage.token_of(item) for item in left} == objects & set(np.flatnonzero(seen))
        empty = 1 - (seen.sum() - len(left)) / (SLOTS**2 - len(items))
        assert empty == pytest.approx(hidden, abs=0.15)


def test_a_missing_token_leaves_a_gap(checkpoints: Path) -> None:
    """Kept tokens stay in order, with their own features and positions; questions stand where they always do."""
    model, encoder = restore(checkpoints / "small"), Encoder()
    gallery = language_stage.make_gallery(model.vision_model, range(1))
    batch = make_batch(encoder, gallery, np.random.default_rng(1), size=1, hidden=0.9)
    first = encoder.prefix.index(encoder.image_token)
    shown = batch.ids[0] == encoder.image_token
    assert 0 < len(batch.features) == shown.sum() < SLOTS**2
    assert torch.equal(batch.features, gallery.features[0][batch.positions[0, shown] - first])
    assert batch.positions[0, (batch.asked[0] == 0).nonzero()[0]] == len(encoder.prefix)


def test_a_deepened_model_says_the_same() -> None:
    torch.manual_seed(0)
    model, encoder = Miniature(TINY, shallow=True), Encoder()
    batch = make_batch(
        encoder, language_stage.make_gallery(model.vision_model, range(1)), np.random.default_rng(0), size=1
    )
    with torch.no_grad():
        before = language_stage.loss_of(model, encoder, batch).total
        model.deepen()
        after = language_stage.loss_of(model, encoder, batch).total
    assert len(model.language_model.model.layers) == TINY["llm_config"]["num_hidden_layers"]
    torch.testing.assert_close(after, before)


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


def test_steps_learn() -> None:
    """A dozen steps on one batch lower the loss of either stage."""
    torch.manual_seed(0)
    model, encoder = Miniature(TINY), Encoder()
    language = TINY["llm_config"]
    labeller = vision_stage.Labeller(language["vocab_size"], language["hidden_size"])
    tiles, labels = vision_stage.batch(range(1))
    gallery = language_stage.make_gallery(model.vision_model, range(1))
    batch = make_batch(encoder, gallery, np.random.default_rng(0), size=1)
    for modules, loss in (
        ([model.vision_model, labeller], lambda: vision_stage.loss_of(model.vision_model, labeller, tiles, labels)),
        ([model.language_model], lambda: language_stage.loss_of(model, encoder, batch)),
    ):
        optimiser = Optimiser(list(torch.nn.ModuleList(modules).parameters()), 0.2, total=1000)
        first = loss().total.item()
        for _ in range(12):
            optimiser.step(loss().total)
        assert loss().total.item() < 0.8 * first


def test_a_stage_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def stage() -> Stage:
        return Stage(tmp_path / "stage.pt", torch.nn.ModuleList([torch.nn.Linear(3, 2)]), Steps(9, 0.1))

    def step(stage: Stage) -> None:
        stage.optimiser.step(stage.modules[0](torch.ones(3, dtype=torch.bfloat16)).square().sum())

    stopped, resumed = stage(), stage()
    for number in stopped.steps(lambda stage, fraction, figures: None):
        step(stopped)
        if number == 4:
            break
    stopped.save()
    assert next(iter(resumed.steps(lambda stage, fraction, figures: None))) == 5
    for again in (stopped, resumed):
        step(again)
    assert torch.equal(stopped.optimiser.exact[0], resumed.optimiser.exact[0])
    assert torch.equal(stopped.modules[0].weight, resumed.modules[0].weight)


def test_small_steps_add_up() -> None:
    """Steps too small for bfloat16 are not lost."""
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimiser = Optimiser([parameter], 1e-4, total=10_000)
    for _ in range(200):
        optimiser.step(parameter.sum())
    assert parameter.max() < 1


def test_the_command_trains_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of every stage; run again, it finds nothing left to do."""
    recipe = replace(
        RECIPES["small"], vision=Steps(2, 1e-3), shallow=Steps(2, 1e-3), language=Steps(2, 1e-3), gallery=8
    )
    monkeypatch.setitem(RECIPES, "small", recipe)
    monkeypatch.setitem(CONFIGS, "small", TINY)
    monkeypatch.setattr("tools.train_miniature.VALIDATION", 6)
    arguments = ["--only", "small", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    weights = []
    for _ in range(2):
        assert main(arguments) == 0
        weights.append((tmp_path / "out/small/model.safetensors").read_bytes())
        assert "checkpoint small is in" in capsys.readouterr().out
    assert weights[0] == weights[1]


@pytest.mark.parametrize("seed", ["-1", "20"])
def test_the_command_names_a_wrong_seed(capsys: pytest.CaptureFixture[str], seed: str) -> None:
    with pytest.raises(SystemExit):
        main(["--seed", seed])
    assert f"--seed {seed} is outside 0..19" in capsys.readouterr().err
