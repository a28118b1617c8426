"""Which tensors a checkpoint holds, against those that a build reads: what nobody reads would change its answers."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from engine.build.checkpoint import Checkpoint
from engine.build_flags import BuildFlag
from engine.errors import CheckpointError
from engine.families.base import Source

HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.(original_)?inv_freq|rotary_emb\.(cos|sin)_cached|embeddings\.position_ids)$"
)
"""Buffers of the published code that it computes itself; older versions of it saved them."""
LORA = re.compile(r"(^|\.)(lora_\w+|base_layer|modules_to_save|base_model\.model)(\.|$)")
QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_packed|weight_(shape|scale\w*|zero_point)|input_scale|SCB"
    r"|weight\.(absmax|nested_\w+|quant_map|quant_state\.\w+))$"
)
WRAPPED = re.compile(r"^(module|_orig_mod|model\.module)\.|\b_fsdp_wrapped_module\b")
COMPARED_BYTES = 1 << 24


def check_names(checkpoint: Checkpoint, sources: Collection[Source]) -> None:
    """Raises CheckpointError unless the checkpoint has the tensors of these sources and says nothing beyond them."""
    names, directory = set(checkpoint.names()), checkpoint.directory
    read = {tensor: None for source in sources for tensor in (*source.tensors(), *source.copies)}
    unread = sorted(name for name in names - read.keys() if not HARMLESS.search(name))
    _refuse_other_makes(unread, directory)
    missing = [name for name in read if name not in names]
    if missing and all(name.endswith(("lm_head.weight", ".output.weight")) for name in missing):
        raise CheckpointError(
            f"tensor {missing[0]}, the output head, is missing from {directory}, as from a checkpoint whose head is "
            "its embedding, but its config.json does not say so; set tie_word_embeddings of the language model to true "
            "if that is meant, or download the checkpoint again, complete"
        )
    if missing:
        checkpoint.shape(missing[0])
    if unread:
        raise CheckpointError(
            f"tensor {unread[0]} of {directory} {_and_others(unread)}no part of what its config.json describes, so its "
            "answers would change without it; download both from the same revision"
        )
    for source in sources:
        for copy in source.copies:
            _compare(checkpoint, source.tensor, copy)


def _and_others(names: Collection[str]) -> str:
    return "is " if len(names) == 1 else f"and {len(names) - 1} more are "


def _refuse_other_makes(unread: Iterable[str], directory: Path) -> None:
    """What has a name in the field, and a remedy of its own."""
    for tensor in unread:
        if LORA.search(tensor):
            raise CheckpointError(
                f"{directory} holds a LoRA adapter (tensor {tensor}), which is not applied here; merge it into its "
                "base model (merge_and_unload of peft), save that and build from it"
            )
        if QUANTIZED.search(tensor):
            raise CheckpointError(
                f"{directory} holds weights that are quantized already (tensor {tensor}, as of GPTQ, AWQ, bitsandbytes "
                f"or FP8); give the checkpoint that it was made from, and choose a {BuildFlag.PRECISION}"
            )
        if wrapper := WRAPPED.search(tensor):
            raise CheckpointError(
                f"{directory} names its tensors as a wrapper around the trained model does ({wrapper[0]} in {tensor}); "
                "save the model inside of the wrapper, or take that part out of all names"
            )


def _compare(checkpoint: Checkpoint, tensor: str, copy: str) -> None:
    """Raises CheckpointError unless both tensors are the same; few rows at a time."""
    shape = checkpoint.shape(tensor)
    checkpoint.expect(copy, shape)
    step = max(1, COMPARED_BYTES // max(1, 8 * int(np.prod(shape[1:]))))
    for start in range(0, shape[0], step):
        rows = [(start, min(start + step, shape[0]))]
        if not np.array_equal(checkpoint.read(tensor, rows), checkpoint.read(copy, rows)):
            raise CheckpointError(
                f"{copy} of {checkpoint.directory} differs from {tensor}, though its config.json ties them; set "
                "tie_word_embeddings of the language model to false if the head is meant, or download it again"
            )
