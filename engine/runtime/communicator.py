"""The NCCL communicator over which the plans of several ranks sum, made with NVIDIA's nccl4py."""

import ctypes
from typing import Any

import torch

from engine.errors import EngineError

CAPSULE = b"ncclComm_t"
"""Name of the capsules; it must live as long as they do."""
MORE = "NCCL_DEBUG=INFO in the environment makes it say more"


class Communicator:
    """This rank's end. The contexts of plans that it was given to must be gone before it is."""

    def __init__(self, unique_id: bytes, rank: int, world_size: int, gpu: int) -> None:
        """Waits for all ranks, each with the number of its own GPU. Raises EngineError when NCCL fails here."""
        nccl = load_nccl()
        torch.cuda.set_device(gpu)  # of this thread: NCCL takes the one that it finds
        try:
            self._communicator = nccl.Communicator.init(
                nranks=world_size, rank=rank, unique_id=nccl.UniqueId.from_bytes(unique_id)
            )
        except Exception as error:
            raise EngineError(
                f"NCCL could not connect GPU {gpu} with those of the other ranks ({error}); {MORE}"
            ) from error

    def capsule(self) -> Any:
        """The `ncclComm_t` as TensorRT's bindings take it."""
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(self._communicator.ptr, CAPSULE, None)

    def destroy(self) -> None:
        """At the end; all ranks do."""
        self._communicator.destroy()

    def abort(self) -> None:
        """Instead of `destroy` after a failure: a sum that this GPU is in the middle of ends without the others."""
        self._communicator.abort()


def make_unique_id() -> bytes:
    """By which the ranks find each other: one makes it, all get it. Raises EngineError."""
    try:
        return bytes(load_nccl().get_unique_id())
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"NCCL could not make an id for the ranks ({error}); {MORE}") from error


def load_nccl() -> Any:
    """nccl4py, which calls the NCCL that torch brought. Raises EngineError that names what to install."""
    try:
        import nccl.core as nccl
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
    else:
        if nccl.get_version().libnccl is not None:
            return nccl
        reason = "libnccl.so.2 was not found"
    raise EngineError(
        f"plans of several ranks need NCCL, which is not installed ({reason}); pip install 'sgl-engine[nccl]'"
    )
