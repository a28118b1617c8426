"""The errors that a user can cause. Each message is one sentence: the thing, the place, the remedy."""

from collections.abc import Callable


class Setting(str):
    """The name of a setting within a sentence: as in Python here, and by each door as its users know it."""


class EngineError(ValueError):
    """Base of all errors that a user can mend; command lines print it and exit with status 2.

    `args` are the parts of the sentence, so that what wraps an error can keep its settings: `(*error.args, "; …")`.
    """

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts)

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, spell: Callable[[str], str]) -> str:
        """The sentence, with its settings named as `spell` does."""
        return "".join(spell(part) if isinstance(part, Setting) else part for part in self.args)


class CheckpointError(EngineError):
    """A checkpoint directory that cannot be read: a missing or truncated file, a wrong shape, an unknown model."""


class ManifestError(EngineError):
    """An engine directory that is incomplete, altered, or built by another version."""


class ImageError(EngineError):
    """A picture that cannot be decoded, or is too large to decode safely."""


class RequestError(EngineError):
    """A question or option that the built engine cannot serve."""


class Overloaded(EngineError):
    """A question that comes when too many wait already; the same one may be asked again later."""


class QuestionTimedOut(EngineError):
    """A question whose time was over before it was answered."""


class ModelFailed(EngineError):
    """A question that an engine failed with; nothing is wrong with the question."""


class QuestionCancelled(EngineError):
    """A question that nobody waits for any more."""
