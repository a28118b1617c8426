"""Questions about clips, of every family: against transformers' eager models, features, positions and logits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.build.builder import build_pair
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, SamplingConfig
from engine.families import Turn
from engine.runtime.clips import ClipFrames
from engine.runtime.guidance import keep_rows
from engine.runtime.model import Seen, VisionLanguageModel
from engine.runtime.pipeline import SglPipeline
from engine.runtime.prompt import PromptTokens, Pruning
from engine.runtime.question import Question
from engine.runtime.vision import pack
from tests import eager_clips as eager
from tests import saved_internvl, saved_llava_onevision, saved_qwen2_vl
from tests.eager import pruned_answer
from tests.eager_clips import Inputs, clip, noise
from tests.prefilled import Prefilled
from tests.tolerance import TOLERANCE

QUESTION, NEW_TOKENS, WIDTH = "How many red squares are there?", 8, 48
Save, Oracle = Callable[[Path], Any], Callable[..., Inputs]
FAMILIES: dict[str, tuple[Save, Oracle]] = {
    "internvl": (lambda directory: saved_internvl.save(directory, "qwen3"), eager.internvl),
    "qwen2_vl": (saved_qwen2_vl.save, eager.qwen),
    "qwen2_5_vl": (lambda directory: saved_qwen2_vl.save(directory, has_windows=True), eager.qwen),
    "llava_onevision": (saved_llava_onevision.save, eager.llava),
}
MEDIA: dict[str, tuple[list[Image.Image], list[ClipFrames]]] = {
    "a clip": ([], [clip(4)]),
    "an odd one": ([], [clip(5, 33, 61)]),
    "one frame": ([], [clip(1)]),
    "with a picture": ([noise(60, 20, 7)], [clip(3)]),
    "two clips": ([], [clip(3), clip(3, 24, 40, first=9)]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def saved(family: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return FAMILIES[family][0](tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def built(saved: Any, tmp_path_factory: pytest.TempPathFactory) -> SglPipeline:
    out = tmp_path_factory.mktemp("built") / "engine"
    pair = BuildConfig(saved.directory, saved.directory, out, max_tokens=512, max_batch=4, prune_layers=(2,))
    build_pair(pair)
    return SglPipeline.load(out, threads=1)


def ask(images: Sequence[Image.Image], videos: Sequence[ClipFrames], text: str = QUESTION, **settings: Any) -> Question:
    plain = {"guidance": GuidanceConfig(enabled=False), "exit": ExitConfig(enabled=False)}
    sampling = SamplingConfig(max_new_tokens=NEW_TOKENS)
    return Question(tuple(images), text, **(plain | settings), sampling=sampling, videos=tuple(videos))


def read(
    model: VisionLanguageModel, images: Sequence[Image.Image], videos: Sequence[ClipFrames], text: str = QUESTION
) -> tuple[Seen, PromptTokens]:
    seen = model.look(images, text, NEW_TOKENS, videos=videos)
    features = [pack(model.vision.encode(part.pixels), part.packing) for part in seen.pieces]
    return seen, seen.prompt(features, model.config.vision.output_size)


@pytest.mark.parametrize("media", MEDIA)
@torch.no_grad()
def test_prompt_features_positions_and_logits(saved: Any, built: SglPipeline, family: str, media: str) -> None:
    images, videos = MEDIA[media]
    theirs = FAMILIES[family][1](saved, images, videos, QUESTION)
    _, prompt = read(built.large, images, videos)
    assert_array_equal(prompt.ids, theirs.model["input_ids"][0].numpy())
    assert_allclose(prompt.features, theirs.features, **TOLERANCE["fp32"])
    if theirs.positions is not None:
        assert_array_equal(prompt.positions(), theirs.positions)
    one = Prefilled(built.large.language, prompt, NEW_TOKENS, prune_layers=(2,), chunk=13)
    one.close()
    assert_allclose(one.logits, saved.model(**theirs.model).logits[0, -1].numpy(), **TOLERANCE["fp32"])


@torch.no_grad()
def importance(saved: Any, prompt: PromptTokens, answer: Sequence[int]) -> np.ndarray:
    """[V]: what text behind the last visual token, and fed tokens, pay the visual tokens in all layers and heads."""
    decoder = saved.model.model.language_model
    ids = np.concatenate([prompt.ids, answer[:-1]]).astype(np.int64)
    embeds = decoder.embed_tokens(torch.from_numpy(ids)).clone()
    embeds[torch.from_numpy(prompt.feature_rows())] = torch.from_numpy(np.array(prompt.features))
    turns, behind = prompt.positions(), prompt.next_position() + np.arange(len(answer) - 1)
    if turns.ndim == 2:
        behind = np.repeat(behind[:, None], 3, axis=1)
    turns = torch.from_numpy(np.concatenate([turns, behind]).T.copy())
    turns = turns[:, None] if turns.dim() == 2 else turns[None]
    attentions = decoder(inputs_embeds=embeds[None], position_ids=turns, output_attentions=True).attentions
    rows = np.arange(prompt.feature_rows()[-1] + 1, len(ids))
    return torch.stack(attentions).double()[:, 0][:, :, rows][..., prompt.visual_positions].sum((0, 1, 2)).numpy()


def answer_to_end(saved: Any, built: SglPipeline, prompt: PromptTokens, pruning: Pruning) -> list[int]:
    said = pruned_answer(saved, prompt, pruning, NEW_TOKENS)
    ends = [index for index, token in enumerate(said) if built.small.tokenizer.special(token) in ("<|im_end|>",)]
    return said[: ends[0] + 1] if ends else said


@pytest.mark.parametrize("quota", [False, True])
@pytest.mark.parametrize("media", ["an odd one", "with a picture"])
def test_the_cascade_is_sgl(saved: Any, built: SglPipeline, media: str, quota: bool) -> None:
    """One ranking over all frames, or the same share of each; kept tokens turn by their own time, row and column."""
    images, videos = MEDIA[media]
    guidance = GuidanceConfig(retention_ratio=0.3, prune_layer=2, per_frame_quota=quota)
    (answer,) = built.answer_batch([ask(images, videos, guidance=guidance, exit=ExitConfig(exit_threshold=2.0))])
    seen, prompt = read(built.small, images, videos)
    said = answer_to_end(saved, built, prompt, Pruning(0, np.arange(len(prompt.ids))))
    expected = importance(saved, prompt, said)
    assert answer.importance is not None and answer.kept is not None
    assert_allclose(answer.importance, expected, rtol=2e-4)
    frames, count = seen.grid.frames(), int(len(expected) * 0.3)
    assert len(answer.kept) == count
    if quota:
        sizes = np.bincount(frames)
        kept = np.bincount(frames[answer.kept], minlength=len(sizes))
        assert (np.abs(kept - sizes * count / len(frames)) < 1).all()
        for frame in range(len(sizes)):
            mine = np.flatnonzero(frames == frame)
            best = mine[np.argsort(-expected[mine], kind="stable")[: kept[frame]]]
            assert_array_equal(np.sort(best), answer.kept[frames[answer.kept] == frame])
    else:
        assert_array_equal(answer.kept, np.sort(np.argsort(-expected, kind="stable")[:count]))
    rows = keep_rows(prompt.visual_positions, answer.kept, len(prompt.ids))
    assert list(answer.token_ids) == pruned_answer(saved, prompt, Pruning(2, rows), len(answer.token_ids))


def test_alone_equals_together(built: SglPipeline) -> None:
    guidance = GuidanceConfig(retention_ratio=0.3, prune_layer=2)
    questions = [ask(*MEDIA[media], guidance=guidance) for media in MEDIA] + [ask([noise(40, 40, 3)], [])]
    for question, together in zip(questions, built.answer_batch(questions), strict=True):
        (alone,) = built.answer_batch([question])
        assert (alone.token_ids, alone.probabilities) == (together.token_ids, together.probabilities)
        assert alone.importance is None or (alone.importance == together.importance).all()


def test_marks_say_where_pictures_and_clips_go(built: SglPipeline) -> None:
    """Features follow the prompt's order; tokens know the picture or clip that they are of, counted pictures first."""
    image, first, second = noise(60, 20, 7), clip(3), clip(2, 24, 40, first=9)
    text = "Is <video> before <image>, or is <video>?"
    seen, prompt = read(built.large, [image], [first, second], text)
    plain, usual = read(built.large, [image], [first, second])
    assert plain.grid.images.tolist() == sorted(plain.grid.images)
    order = list(dict.fromkeys(seen.grid.images.tolist()))
    assert order == [1, 0, 2]
    for medium in range(3):
        ours, theirs = seen.grid.images == medium, plain.grid.images == medium
        assert_array_equal(
            prompt.features[prompt.visual_features()][ours], usual.features[usual.visual_features()][theirs]
        )
        assert_array_equal(seen.grid.spans()[ours], plain.grid.spans()[theirs])
    (answer,) = built.answer_batch([ask([image], [first, second], text)])
    assert_array_equal(answer.images, seen.grid.images)
    ends = np.cumsum([part.num_rows() for part in seen.pieces])
    marks = np.split(seen.marks[seen.encoded.feature_positions], ends[:-1])
    for part, of_part in zip(seen.pieces, marks, strict=True):
        assert_array_equal(of_part[:, 2:6], np.tile(np.frombuffer(part.digest, np.int64), (len(of_part), 1)))


def test_what_prompts_with_clips_have_in_common_changes_nothing(built: SglPipeline) -> None:
    """In whatever order: what an earlier question left is what is computed anew, bit by bit."""
    image, first, second = noise(60, 20, 7), clip(3), clip(3, 24, 40, first=9)
    texts = (
        "<video>\n<image>\n<video>\nWhat?",
        "<video>\n<image>\n<video>\nAnd where?",
        "<image>\n<video>\n<video>\nWhat?",
    )
    known = []
    with SglPipeline.load(built.directory, threads=1) as keeping, \
         SglPipeline.load(built.directory, threads=1, prefix_cache=0) as without:  # fmt: skip
        for videos in ((first, second), (second, first)):
            for text in texts:
                question = ask([image], videos, text)
                (found,), (expected,) = keeping.answer_batch([question]), without.answer_batch([question])
                assert (found.token_ids, found.probabilities) == (expected.token_ids, expected.probabilities)
                known.append(found.reuse.tokens_known)
        rows = without.large.look([image], texts[0], 1, videos=(first, second)).encoded.feature_positions
    assert known[1] > rows[-1] - 2 * without.large.config.language.head_dim
    assert max(known[2], known[3]) <= rows[0]


def test_a_clip_of_an_earlier_turn(built: SglPipeline) -> None:
    """It goes first in the conversation, and what follows it is the same as in a prompt with its first question."""
    history = (Turn("What moves?", "A square."),)
    seen = built.large.look([], QUESTION, NEW_TOKENS, history, videos=[clip(3)])
    first, _ = read(built.large, [], [clip(3)], "What moves?")
    shared = len(first.encoded.ids)
    assert_array_equal(seen.encoded.ids[:shared], first.encoded.ids)
    assert_array_equal(seen.encoded.visual_positions, first.encoded.visual_positions)
    (answer,) = built.answer_batch([ask([], [clip(3)])])
    asked = Question(
        (), QUESTION, GuidanceConfig(enabled=False), ExitConfig(enabled=False), history=history, videos=(clip(3),)
    )
    assert built.answer_batch([asked])[0].visual_tokens == answer.visual_tokens


def test_a_clip_that_is_asked_about_again_is_not_encoded_again(
    built: SglPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known by its pixels and their shape."""
    question = ask([], [clip(4, 40, 40, first=20)])
    (first,) = built.answer_batch([question])
    monkeypatch.setattr(built.large.vision, "encode", lambda pixels: pytest.fail("it is encoded again"))
    (again,) = built.answer_batch([question])
    assert (again.token_ids, again.probabilities) == (first.token_ids, first.probabilities)


def test_still_frames_are_no_picture(built: SglPipeline) -> None:
    """A clip of one picture again and again has other features than the picture has."""
    image = noise(40, 40, 5)
    one, several = (
        built.large.look([], QUESTION, 1, videos=[ClipFrames((image,) * count)]).pieces[0] for count in (2, 4)
    )
    assert one.digest != several.digest
