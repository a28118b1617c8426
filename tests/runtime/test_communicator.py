"""NCCL as nccl4py offers it: what is called exists, and what is missing is said. No GPU is asked."""

import inspect
import sys

import pytest

from engine.errors import EngineError
from engine.runtime.communicator import make_unique_id


def test_nccl4py_offers_what_is_called() -> None:
    nccl = pytest.importorskip("nccl.core", reason="nccl4py is not installed")
    assert {"nranks", "rank", "unique_id"} <= inspect.signature(nccl.Communicator.init).parameters.keys()
    assert nccl.Communicator().ptr == 0, "an address, here of none"
    assert callable(nccl.Communicator.destroy) and callable(nccl.Communicator.abort)
    assert bytes(nccl.UniqueId.from_bytes(bytes(range(128)))) == bytes(range(128))
    if nccl.get_version().libnccl is None:
        with pytest.raises(
            EngineError, match=r"^plans of several ranks need NCCL, .* \(libnccl.so.2 was not found\); "
        ):
            make_unique_id()
    else:
        assert len(make_unique_id()) == 128


def test_without_nccl4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nccl.core", None)
    with pytest.raises(EngineError, match=r"not installed \(import of nccl.*\); pip install 'sgl-engine\[nccl\]'$"):
        make_unique_id()
