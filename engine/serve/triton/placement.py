"""On which GPUs a process of the served model runs: those of its instance are all that it sees."""

import os
from collections.abc import Mapping, Sequence

from engine.errors import EngineError
from engine.gpu import VISIBLE

GPUS = "gpus"
"""Parameter of the model: the ids of all its GPUs, those of one instance after those of the other."""


def instances(gpus: Sequence[int], count: int) -> list[int]:
    """The GPUs that the server is told of: the first of each instance. count: GPUs of an instance."""
    return list(gpus[::count])


def take_gpus(args: Mapping[str, str], parameters: Mapping[str, str], count: int) -> None:
    """Leave this process, which has not used CUDA yet, the GPUs of its instance.

    count: as `loading.gpus_of`. args: as `initialize` receives them. An instance on the CPU keeps what it sees. Raises
    EngineError.
    """
    if args["model_instance_kind"] != "GPU":
        return
    first = int(args["model_instance_device_id"])
    ids = [first] if count == 1 else _group(parameters, first, count)
    seen = os.environ[VISIBLE].split(",") if VISIBLE in os.environ else None
    if seen is not None and max(ids) >= len(seen):
        raise EngineError(f"GPU {max(ids)} is not among the {len(seen)} of {VISIBLE}={os.environ[VISIBLE]}; name more")
    os.environ[VISIBLE] = ",".join(str(gpu) if seen is None else seen[gpu] for gpu in ids)


def _group(parameters: Mapping[str, str], first: int, count: int) -> list[int]:
    given = [int(gpu) for gpu in parameters.get(GPUS, "").split(",") if gpu]
    for start in range(0, len(given), count):
        group = given[start : start + count]
        if group[0] == first and len(group) == count:
            return group
    raise EngineError(
        f"no instance of {count} GPUs starts with GPU {first} in the parameter {GPUS} ({parameters.get(GPUS, '')!r}); "
        "export the repository with --gpus"
    )
