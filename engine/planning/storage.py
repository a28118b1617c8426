"""How many bits a number takes in the engines of a target and precision."""

from engine.build.storage import Storage
from engine.build.toolchains import TOOLCHAINS
from engine.target import Precision, Target


def storage_of(target: Target, precision: Precision) -> Storage:
    """Raises EngineError when the target is not built in this precision."""
    target.check(precision)
    return TOOLCHAINS[target].storage(precision)
