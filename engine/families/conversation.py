"""A conversation template around one question, its pictures and what was said before; every family names its own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from engine.errors import RequestError
from engine.families.base import Part, Prompt, Turn

PICTURE, CLIP = "<image>", "<video>"
"""Where a question says that a picture goes, or a clip."""
MARKS = re.compile(f"{PICTURE}|{CLIP}")
CONTROL_TOKEN = re.compile(r"<\|[^<>|]*\|>")


@dataclass(frozen=True)
class PictureForm:
    """What stands around the visual tokens of a picture, and behind a picture that goes before a question."""

    start: str
    token: str
    end: str
    behind: str = "\n"
    is_numbered: bool = False
    """Several pictures before a question are called Image-1, Image-2 and so on."""


@dataclass(frozen=True)
class ClipForm:
    """What stands around the visual tokens of a clip, or of each of its frames, and behind a clip that goes before a
    question.
    """

    start: str
    token: str
    end: str
    behind: str = "\n"
    frame: str | None = None
    """What each frame begins with, `{}` its number, a line each; None: all frames stand together."""

    def render(self, rows: Sequence[int]) -> str:
        """rows: of each frame, or of each part of all."""
        if self.frame is None:
            return self.start + self.token * sum(rows) + self.end
        lines = (self.frame.format(number) for number in range(1, len(rows) + 1))
        return "\n".join(
            line + self.start + self.token * count + self.end for line, count in zip(lines, rows, strict=True)
        )


@dataclass(frozen=True)
class Template:
    """What stands before the system message, the question and the answer, and what ends each."""

    system: str
    user: str
    assistant: str
    separator: str
    stop: tuple[str, ...]
    """The separator, and the ends of sequence of the language models that come with the template."""
    picture: PictureForm
    clip: ClipForm
    system_message: str | None = None
    """None: no system turn."""
    separates_empty: bool = False
    """Whether the separator also follows an empty question or answer."""
    opening: str = ""
    """Before a question, behind the pictures that go first."""
    said_before: str | None = None
    """In the place of `assistant`, before an answer of an earlier turn."""

    def turn(self, role: str, text: str, is_said: bool = False) -> list[Part]:
        """A question or an answer, to its end."""
        said = [Part(text, is_said), Part(self.separator)] if text or self.separates_empty else []
        return [Part(role), *said]


def render(
    template: Template,
    question: str,
    visual_tokens: Sequence[int],
    history: Sequence[Turn],
    system: str | None,
    stop: Sequence[str] = (),
    clips: Sequence[Sequence[int]] = (),
) -> Prompt:
    """`<image>` and `<video>` mark where pictures and clips go, else they go first. system: instead of the template's
    own message. stop: ends besides the template's. Raises RequestError.
    """
    questions = [*(turn.question for turn in history), question]
    _refuse_control_tokens("question", questions, template)
    _refuse_control_tokens("system message", [system or ""], template, marked=False)
    questions = [template.opening + question for question in questions]
    pictures = len(visual_tokens)
    pictures_are_marked = _are_marked(questions, PICTURE, pictures, "picture")
    if not _are_marked(questions, CLIP, len(clips), "clip"):
        questions[0] = f"{CLIP}{template.clip.behind}" * len(clips) + questions[0]
    if not pictures_are_marked:
        questions[0] = _picture_marks(pictures, template.picture) + questions[0]
    form, order = template.picture, _order(questions, pictures)
    texts = [form.start + form.token * tokens + form.end for tokens in visual_tokens]
    texts += [template.clip.render(rows) for rows in clips]
    places = iter(order)
    questions = [MARKS.sub(lambda mark: texts[next(places)], question) for question in questions]
    message = template.system_message if system is None else system
    parts = [] if message is None else [Part(template.system + message + template.separator)]
    for turn, asked in zip(history, questions, strict=False):
        said = template.assistant if template.said_before is None else template.said_before
        parts += template.turn(template.user, asked) + template.turn(said, turn.answer, is_said=True)
    parts += [*template.turn(template.user, questions[-1]), Part(template.assistant)]
    return Prompt(tuple(parts), form.token, (*template.stop, *stop), template.clip.token, order)


def _are_marked(questions: Sequence[str], mark: str, number: int, what: str) -> bool:
    """Whether so many pictures, or clips, have a mark each; else none has. Raises RequestError for another number."""
    marks = sum(question.count(mark) for question in questions)
    if marks not in (0, number):
        raise RequestError(
            f"marks {mark} in the question: {marks}, {what}s: {number}; give one mark per {what}, or none"
        )
    return marks > 0


def _order(questions: Sequence[str], pictures: int) -> tuple[int, ...]:
    """The number of each medium that is marked, in the order of the marks: of pictures first, then of clips."""
    following = {PICTURE: count(), CLIP: count(pictures)}
    return tuple(next(following[mark]) for question in questions for mark in MARKS.findall(question))


def _picture_marks(pictures: int, form: PictureForm) -> str:
    """Put before a conversation that has none, as in the published examples."""
    if pictures == 1 or not form.is_numbered:
        return f"{PICTURE}{form.behind}" * pictures
    return "".join(f"Image-{number}: {PICTURE}{form.behind}" for number in range(1, pictures + 1))


def _refuse_control_tokens(what: str, texts: Sequence[str], template: Template, marked: bool = True) -> None:
    """A text must not close its own turn, open another one, or stand for a picture. marked: marks may."""
    form, clip = template.picture, template.clip
    for text in texts:
        tokens = {form.start, form.token, form.end, clip.start, clip.token, clip.end, *template.stop}
        # A mark stands for a picture or a clip whichever token it spells.
        tokens -= {"", PICTURE, CLIP} if marked else {""}
        reserved = [token for token in tokens if token in text]
        reserved += CONTROL_TOKEN.findall(text)
        if reserved:
            raise RequestError(f"the {what} contains the control token {reserved[0]}; leave it out")
