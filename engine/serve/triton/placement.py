"""On which GPUs a process of the served model runs: those of its instance are all that it sees."""

import os
from collections.abc import Mapping, Sequence

from engine.errors import EngineError

GPUS = "gpus"
"""Parameter of the model: the ids of all its GPUs, those of one instance after those of the other."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Read by CUDA when a process first uses it, and inherited by the ranks that it starts."""


def instances(gpus: Sequence[int], ranks: int) -> list[int]:
    """The GPUs that the server is told of: the first of each instance. ranks: GPUs of an instance."""
    return list(gpus[::ranks])


def take_gpus(args: Mapping[str, str], parameters: Mapping[str, str], ranks: int) -> None:
    """Leave this process, which has not used CUDA yet, the GPUs of its instance, one for each rank of the large model.

    args: as `initialize` receives them. An instance on the CPU keeps what it sees. Raises EngineError.
    """
    if args["model_instance_kind"] != "GPU":
        return
    first = int(args["model_instance_device_id"])
    ids = [first] if ranks == 1 else _group(parameters, first, ranks)
    seen = os.environ[VISIBLE].split(",") if VISIBLE in os.environ else None
    if seen is not None and max(ids) >= len(seen):
        raise EngineError(f"GPU {max(ids)} is not among the {len(seen)} of {VISIBLE}={os.environ[VISIBLE]}; name more")
    os.environ[VISIBLE] = ",".join(str(gpu) if seen is None else seen[gpu] for gpu in ids)


def _group(parameters: Mapping[str, str], first: int, ranks: int) -> list[int]:
    given = [int(gpu) for gpu in parameters.get(GPUS, "").split(",") if gpu]
    for start in range(0, len(given), ranks):
        group = given[start : start + ranks]
        if group[0] == first and len(group) == ranks:
            return group
    raise EngineError(
        f"no {ranks} ranks start at GPU {first} in the parameter {GPUS} ({parameters.get(GPUS, '')!r}); "
        "export the repository with --gpus"
    )
