"""The `config.pbtxt` of a served model."""

import json
from collections.abc import Mapping

from tools.triton.serve_config import Instances
from tools.triton.tensors import Model, Tensor


def model_config(
    model: Model, max_batch: int, queue_delay_us: int, instances: Instances, parameters: Mapping[str, str]
) -> str:
    """Text of the file."""
    parts = [
        f'name: "{model.name}"',
        'backend: "python"',
        f"max_batch_size: {max_batch}",
        f"model_transaction_policy {{ decoupled: {str(model.decoupled).lower()} }}",
        # A sampled answer must not be returned twice.
        "response_cache { enable: false }",
        f"instance_group [ {{ {_place(instances)} }} ]",
    ]
    if model.batched:
        # No queue policy: in servers up to 2.51 any policy delays batches.
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {queue_delay_us} }}")
    parts += [f"input {{ {_declare(tensor)} }}" for tensor in model.inputs]
    parts += [f"output {{ {_name(tensor)} }}" for tensor in model.outputs]
    parts += [
        f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}"
        for key, value in parameters.items()
    ]
    return "\n".join(parts) + "\n"


def _place(instances: Instances) -> str:
    if not instances.gpus:
        return f"kind: KIND_CPU count: {instances.count}"
    return f"kind: KIND_GPU count: {instances.count} gpus: [ {', '.join(map(str, instances.placed()))} ]"


def _declare(tensor: Tensor) -> str:
    text = _name(tensor)
    if tensor.optional:
        text += " optional: true"
    if -1 in tensor.dims:
        # Requests of different sizes share a batch.
        text += " allow_ragged_batch: true"
    return text


def _name(tensor: Tensor) -> str:
    return f'name: "{tensor.name}" data_type: TYPE_{tensor.kind} dims: [ {", ".join(map(str, tensor.dims))} ]'
