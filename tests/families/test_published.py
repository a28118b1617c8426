"""Published sizes that come with the engine, found by name."""

import pytest

from engine.errors import CheckpointError
from engine.families import family_of, published, published_names


def test_all_sizes_of_the_family_are_there() -> None:
    assert published_names() == [f"InternVL2-{size}" for size in ("1B", "2B", "4B", "8B", "26B", "40B", "76B")]


@pytest.mark.parametrize("name", ["InternVL2-26B", "internvl2-26b", "26B", "26b"])
def test_a_size_is_a_checkpoint_directory_without_weights(name: str) -> None:
    directory = published(name)
    family, config = family_of(directory)
    read = family.read_config(directory, config)
    assert (read.name, read.language.num_layers) == ("InternVL2-26B", 48)
    assert [path.name for path in directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["", "B", "InternVL2", "InternVL2-3B", "../InternVL2-1B"])
def test_an_unknown_name_says_what_is_known(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"known: InternVL2-1B, .*, InternVL2-76B$"):
        published(name)
