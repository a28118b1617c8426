"""Published sizes that come with the engine, found by name."""

import pytest

from engine.errors import CheckpointError
from engine.families import family_of, published, published_names


def test_all_sizes_of_the_families_are_there() -> None:
    sizes = {
        "InternVL2": ("1B", "2B", "4B", "8B", "26B", "40B", "76B"),
        "Qwen2-VL": ("2B", "7B", "72B"),
        "Qwen2.5-VL": ("3B", "7B", "32B", "72B"),
        "LLaVA-OneVision": ("0.5B", "7B", "72B"),
    }
    assert published_names() == [f"{family}-{size}" for family, names in sizes.items() for size in names]


@pytest.mark.parametrize("name", ["InternVL2-26B", "internvl2-26b", "26B", "26b"])
def test_a_size_is_a_checkpoint_directory_without_weights(name: str) -> None:
    directory = published(name)
    family, config = family_of(directory)
    read = family.read_config(directory, config)
    assert (read.name, read.language.num_layers) == ("InternVL2-26B", 48)
    assert [path.name for path in directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["", "B", "InternVL2", "InternVL2-3B", "../InternVL2-1B", "2B"])
def test_a_name_of_none_or_of_several_says_what_is_known(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"known: InternVL2-1B, .*, LLaVA-OneVision-72B$"):
        published(name)
