"""The errors that a user can cause. Each message is one sentence: the thing, the place, the remedy."""


class EngineError(ValueError):
    """Base of all errors that a user can mend; command lines print it and exit with status 2."""


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
