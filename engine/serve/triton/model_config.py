"""The `config.pbtxt` of the served model."""

import json
from collections.abc import Mapping, Sequence

from engine.serve.triton.tensors import INPUTS, MODEL, OUTPUTS, Tensor


def model_config(gpus: Sequence[int], parameters: Mapping[str, str]) -> str:
    """Text of the file. gpus: one process on each, none is one on the CPU."""
    parts = [
        f'name: "{MODEL}"',
        'backend: "python"',
        # Requests have a batch dimension and never share one: they meet in the scheduler.
        "max_batch_size: 1",
        "model_transaction_policy { decoupled: true }",
        # A sampled answer must not be returned twice.
        "response_cache { enable: false }",
        f"instance_group [ {{ {_place(gpus)} }} ]",
    ]
    parts += [f"input {{ {_name(tensor)}{' optional: true' * tensor.optional} }}" for tensor in INPUTS]
    parts += [f"output {{ {_name(tensor)} }}" for tensor in OUTPUTS]
    parts += [
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}"
        for key, value in parameters.items()
    ]
    return "\n".join(parts) + "\n"


def _place(gpus: Sequence[int]) -> str:
    if not gpus:
        return "kind: KIND_CPU count: 1"
    return f"kind: KIND_GPU count: 1 gpus: [ {', '.join(map(str, gpus))} ]"


def _name(tensor: Tensor) -> str:
    return f'name: "{tensor.name}" data_type: TYPE_{tensor.kind} dims: [ {", ".join(map(str, tensor.dims))} ]'
