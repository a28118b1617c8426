"""The network in which URLs are fuzzed; `test_kinds.py` runs the changed ones."""

import pytest

from engine.errors import ImageError
from engine.runtime.image_url import EVERY_HOST, fetch
from tools.fuzz import urls


def test_the_network_answers() -> None:
    outcomes = []
    for answer in urls.ANSWERS:
        try:
            with urls.network(answer):
                outcomes.append(fetch("http://pictures.example/a.png", hosts=EVERY_HOST))
        except ImageError as error:
            outcomes.append(str(error).encode())
    assert outcomes.count(b"pixels") == 4
    assert any(b"leads to the private address 10.0.0.1" in outcome for outcome in outcomes)


def test_nobody_connects_to_a_private_address() -> None:
    with urls.network(b""), pytest.raises(ImageError, match="leads to the private address ::1"):
        fetch("http://both.example/", hosts=EVERY_HOST)


def test_a_seed_is_a_case() -> None:
    cases = [urls.make(seed) for seed in range(200)]
    assert cases == [urls.make(seed) for seed in range(200)]
    with pytest.raises(ImageError, match="is neither"):
        fetch("", hosts=EVERY_HOST)
    urls.run({"url": "-"})
