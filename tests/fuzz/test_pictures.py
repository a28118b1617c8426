"""The pictures that are fuzzed are pictures before somebody changes them; `test_kinds.py` runs the changed ones."""

import pytest

from engine.errors import ImageError
from engine.runtime.images import open_image
from tools.fuzz import pictures

READ = [name for name in pictures.OPTIONS if name.islower()]


def test_there_are_twenty_formats() -> None:
    assert len(READ) >= 20
    assert len({format for _, format, _ in pictures.OPTIONS.values()}) >= 18


@pytest.mark.parametrize("name", READ)
def test_unchanged_files_are_read(name: str) -> None:
    data = pictures.files()[list(pictures.OPTIONS).index(name)]
    assert open_image(data).size == (24, 18)
    pictures.run(data)


@pytest.mark.parametrize("name", sorted(set(pictures.OPTIONS) - set(READ)))
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(ImageError, match=r"; JPEG, PNG, WebP, .* are read"):
        open_image(pictures.files()[list(pictures.OPTIONS).index(name)])


def test_a_seed_is_a_case() -> None:
    cases = [pictures.make(seed) for seed in range(200)]
    assert cases == [pictures.make(seed) for seed in range(200)]
    assert len(set(cases)) > 190
