"""Weights are read once: rewards, ensembles of them, diversity and critics share what they have in common."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from overopt_bench.errors import UserError
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite, register_reward
from overopt_bench.rewards.clip import ClipReward
from overopt_bench.rewards.ensemble import Ensemble
from overopt_bench.rewards.mini import MiniProxy
from overopt_bench.sizing.micro_batch import weight_bytes
from overopt_bench.types import Resources, Reward, Suite
from overopt_bench.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def counted(owner: Any, name: str) -> Iterator[list[str]]:
    """Count the calls of a method, such as the constructor of a network."""
    calls: list[str] = []
    original: Callable[..., Any] = getattr(owner, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, count)
        yield calls


def resources() -> Resources:
    return Resources("nobody", Weights())


def member(reward: Reward, name: str) -> Reward:
    assert isinstance(reward, Ensemble)
    return reward.loaded[reward.members.index(name)]


def test_the_same_call_gives_the_same_object() -> None:
    shared = resources()
    made = [shared.once(list, (1, 2)), shared.once(list, (1, 2)), shared.once(list, (1, 3)), shared.once(set, (1, 2))]
    assert made == [[1, 2], [1, 2], [1, 3], {1, 2}]
    assert made[0] is made[1] and resources().once(list, (1, 2)) is not made[0]


def test_a_file_of_the_suite_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the nobody suite brings no files, so there is no a\.json"):
        resources().asset("a.json")
    shared = Resources("nobody", Weights(), tmp_path, "copy it again")
    with pytest.raises(UserError, match=r"the nobody suite lacks .*a\.json; copy it again"):
        shared.asset("a.json")
    (tmp_path / "a.json").touch()
    assert shared.asset("a.json") == tmp_path / "a.json"


def test_a_suite_that_is_dropped_takes_its_networks_along() -> None:
    """At once, not when Python next looks for cycles: a sweep loads the next run's rewards on the same card."""
    suite = get_suite("mini")
    kept = [weakref.ref(get_reward("min:aesthetic+pickscore", suite)), weakref.ref(suite.resources)]
    gc.disable()
    try:
        del suite
        assert [ref() for ref in kept] == [None, None]
    finally:
        gc.enable()


def test_what_could_not_be_loaded_is_tried_again() -> None:
    shared, answers = resources(), iter([ValueError("not yet"), None])

    def load() -> str:
        if error := next(answers):
            raise error
        return "here"

    with pytest.raises(ValueError, match="not yet"):
        shared.once(load)
    assert shared.once(load) == "here" and shared.once(load) == "here"


@pytest.mark.parametrize("suite", ["mini", "sd14"])
def test_an_ensemble_holds_the_reward_that_a_run_evaluates(suite: str, tiny_weights: Path) -> None:
    """``--proxy min:aesthetic+pickscore --gold pickscore`` holds PickScore once, whichever of the two is asked first."""
    names = ["min:aesthetic+pickscore", "pickscore", "mean:pickscore+aesthetic", "uwo@lambda=2:aesthetic+pickscore"]
    for order in (names, names[::-1]):
        world = get_suite(suite, None if suite == "mini" else tiny_weights)
        loaded = {name: get_reward(name, world) for name in order}
        holders = [loaded["pickscore"], *(member(loaded[name], "pickscore") for name in names if ":" in name)]
        assert all(holder is holders[0] for holder in holders)
        assert len({id(member(loaded[name], "aesthetic")) for name in names if ":" in name}) == 1


@pytest.mark.parametrize(
    ("suite", "proxy", "clips"),
    [
        ("sd14", "min:aesthetic+pickscore", 2),  # ViT-L/14 and PickScore's own
        ("sd14", "clipscore", 2),
        ("mini", "min:aesthetic+pickscore", 4),  # the frozen one and those of imagereward, pickscore and hpsv2
        ("mini", "clipscore", 4),
    ],
)
def test_every_clip_is_read_once(suite: str, proxy: str, clips: int, tiny_weights: Path) -> None:
    """By all that a run evaluates, its diversity, and a critic that sees the suite's CLIP."""
    world = get_suite(suite, None if suite == "mini" else tiny_weights)
    with counted(CLIPModel, "__init__") as built, counted(CLIPTokenizer, "from_pretrained") as tokenizers:
        for name in evaluated_rewards(world, proxy, ["pickscore", "aesthetic", "clipscore"]):
            get_reward(name, world)
        world.clip_features(torch.rand(2, 3, 32, 32))
        assert world.clip_dim > 0
    assert len(built) == clips and len(tokenizers) == 1


def networks_of_clip(suite: Suite, names: list[str]) -> set[int]:
    rewards = [get_reward(name, suite) for name in names]
    assert all(isinstance(reward, ClipReward | MiniProxy) for reward in rewards)
    return {id(reward.clip) for reward in rewards if isinstance(reward, ClipReward | MiniProxy)}


@pytest.mark.parametrize("suite", ["mini", "sd14"])
def test_rewards_on_the_frozen_clip_hold_one(suite: str, tiny_weights: Path) -> None:
    """Those that fine-tuned it have their own, and two suites never share: what one moves stays where it is for the other."""
    folder = None if suite == "mini" else tiny_weights
    world = get_suite(suite, folder)
    assert len(networks_of_clip(world, ["aesthetic", "clipscore"])) == 1
    assert len(networks_of_clip(world, ["aesthetic", "pickscore"])) == 2
    assert len(networks_of_clip(world, ["aesthetic"]) | networks_of_clip(get_suite(suite, folder), ["aesthetic"])) == 2


def test_a_shared_clip_that_moved_takes_nothing_from_the_rest(tiny_weights: Path) -> None:
    """Diversity moves CLIP to the device of the images; the aesthetic head, which it does not know, follows later.

    "meta", like a GPU, refuses to mix with the CPU, but is everywhere.
    """
    world = get_suite("sd14", tiny_weights)
    reward = get_reward("aesthetic", world)
    images = torch.empty(2, 3, 224, 224, device="meta", requires_grad=True)
    assert world.clip_features(images).device == images.device
    assert reward(images, ["", ""]).device == images.device


def test_memory_counts_what_is_held(tiny_weights: Path) -> None:
    """An ensemble and its members take what the members take; CLIP under two rewards counts once; JPEG takes nothing."""
    world = get_suite("sd14", tiny_weights)
    aesthetic, pick, clipscore = (get_reward(name, world) for name in ("aesthetic", "pickscore", "clipscore"))
    ensemble = get_reward("min:aesthetic+pickscore", world)
    head = sum(p.numel() for p in torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in HEAD)).parameters()) * 4
    assert weight_bytes([aesthetic]) == weight_bytes([clipscore]) + head
    assert weight_bytes([ensemble]) == weight_bytes([aesthetic]) + weight_bytes([pick])
    assert weight_bytes([ensemble, pick, clipscore]) == weight_bytes([ensemble])
    assert weight_bytes([get_reward("jpeg_compressibility", world)]) == 0


HEAD = [(768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]  # LAION's


def test_a_reward_from_outside_shares_too(clean_registry: None) -> None:
    """One that reads a suite's files through ``load(resources)`` and one that has nothing to read."""

    @register_reward(suite="mini")
    class Learned(Reward):
        """Mean brightness, with a network that counts as memory."""

        name = "learned"

        def __init__(self, table: torch.nn.Module) -> None:
            self.table = table

        @classmethod
        def load(cls, resources: Resources) -> Learned:
            assert resources.asset("prompts.json").is_file() and resources.family == "mini"
            return cls(resources.once(torch.nn.Linear, 10, 10))

        def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            return images.mean((1, 2, 3))

    suite = get_suite("mini")
    reward = get_reward("learned", suite)
    assert member(get_reward("min:learned+aesthetic", suite), "learned") is reward
    assert weight_bytes([reward]) == 4 * 110
