"""The prompt lists that ship with the package."""

from __future__ import annotations

import hashlib
from importlib import resources

import pytest

from overopt_bench.errors import UserError
from overopt_bench.prompts import names, read_prompts

# name: (count, first, last, sha256 of the file)
LISTS = {
    "heldout_animals": (
        6, "snail", "octopus",
        "98a6bac4b2a867a66ca46e8b1786ab321887ea46e05295a88ee1890c60280020",
    ),
    "imagenet_animals": (
        398, "tench, Tinca tinca", "puffer, pufferfish, blowfish, globefish",
        "8d356a5fcbea73e8a0cd6854ac02ada9c286c048a34cdcfadd6a1cbcad06224d",
    ),
    "simple_animals": (
        45, "cat", "kangaroo",
        "ee3d9b638ce2a40e896a34319af85709d3c1c3188da0b8feda739dcb7363188d",
    ),
}  # fmt: skip


def test_the_lists_are_all_named() -> None:
    assert names() == tuple(sorted(LISTS))


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_the_published_prompts(name: str) -> None:
    count, first, last, _ = LISTS[name]
    prompts = read_prompts(name)
    assert (len(prompts), prompts[0], prompts[-1]) == (count, first, last)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_has_no_blank_padded_or_repeated_line(name: str) -> None:
    prompts = read_prompts(name)
    assert all(p and p == p.strip() for p in prompts)
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_unchanged_to_the_byte(name: str) -> None:
    data = resources.files("overopt_bench.prompts").joinpath(f"{name}.txt").read_bytes()
    assert hashlib.sha256(data).hexdigest() == LISTS[name][3]


def test_held_out_animals_are_not_trained_on() -> None:
    assert not set(read_prompts("heldout_animals")) & set(read_prompts("simple_animals"))


def test_an_unknown_list_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'simple_animals'"):
        read_prompts("simple_animal")
