"""A rank's part of its machine."""

import pytest

from engine.batch.share import Machine
from engine.errors import EngineError


def test_cores_are_shared_out() -> None:
    eight = tuple(range(8))
    assert [Machine(rank, (eight,) * 3).own_cores() for rank in range(3)] == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert [Machine(rank, ((0, 5),) * 4).own_cores() for rank in range(4)] == [(0,), (5,), (0,), (5,)]
    assert Machine(0, (eight,)).own_cores() == eight


def test_cores_that_a_launcher_gave_stay() -> None:
    bound = ((0, 1), (2, 3))
    assert [Machine(rank, bound).own_cores() for rank in range(2)] == [(0, 1), (2, 3)]
    by_socket = ((0, 1), (0, 1), (2, 3), (2, 3))
    assert [Machine(rank, by_socket).own_cores() for rank in range(4)] == [(0,), (1,), (2,), (3,)]


def test_gpus_are_shared_out() -> None:
    ranks = [Machine(rank, ((0,),) * 2) for rank in range(2)]
    assert [rank.own_gpus(1, None) for rank in ranks] == [["0"], ["1"]]
    assert [rank.own_gpus(2, None) for rank in ranks] == [["0", "1"], ["2", "3"]]
    assert [rank.own_gpus(1, "4,6") for rank in ranks] == [["4"], ["6"]]
    assert [rank.own_gpus(2, "1,3,5,7") for rank in ranks] == [["1", "3"], ["5", "7"]]
    assert ranks[1].own_gpus(1, "5") == ["5"]  # given to it alone
    with pytest.raises(EngineError, match="2 ranks of this machine need 2 GPUs each, and CUDA_VISIBLE_DEVICES names 3"):
        ranks[1].own_gpus(2, "0,1,2")
