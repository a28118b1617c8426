"""Which package stands for which TensorRT target; nothing else needs to know that there are two."""

from typing import Any

from engine.errors import EngineError
from engine.target import Target

EXTRAS = {Target.TENSORRT_RTX: "tensorrt-rtx", Target.TENSORRT: "tensorrt"}


def load_library(target: Target) -> Any:
    """The package's module. Raises EngineError that names what to install."""
    try:
        if target is Target.TENSORRT_RTX:
            import tensorrt_rtx_bindings as library
        else:
            import tensorrt as library
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise EngineError(
            f"target {target} needs its library, which is not installed ({reason}); "
            f"pip install 'sgl-engine[{EXTRAS[target]}]'"
        ) from None
    return library
