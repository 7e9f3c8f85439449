"""Micro-batches by the card: what is chosen fits, one more would not, and a card that is too small is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.policy import MICRO_BATCH
from overopt_bench.errors import UserError
from overopt_bench.presets import read_presets
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.sizing.costs import Costs, costs
from overopt_bench.sizing.micro_batch import (
    HEADROOM,
    Needs,
    choose,
    choose_sampling,
    fit,
    needs,
    pipeline_costs,
    weight_bytes,
)
from overopt_bench.suites.architectures import ARCHITECTURES
from overopt_bench.types import ImageCost

TRANSITIONS, CHAIN = ImageCost(trained=50), ImageCost(backpropagated=25.5)
REWARDS = 8e9  # bytes on the card, more than any two of the published rewards


@pytest.fixture(scope="module")
def sd1() -> Costs:
    unet, vae, text = ARCHITECTURES["sd1"]
    return costs(unet, vae, torch.float16, text)


def test_the_largest_that_fits_is_chosen() -> None:
    need = Needs(held=10e9, sampling=0.5e9, training=2e9)
    assert fit(need, 40e9, "ddpo") == (48, 12)  # (0.85 x 40 - 10) / 0.5 and / 2
    assert fit(need, 1000e9, "ddpo") == (MICRO_BATCH, MICRO_BATCH)
    assert need.least == pytest.approx(12e9 / (1 - HEADROOM))
    assert fit(need, need.least + 1e6, "ddpo")[1] == 1


def test_a_card_that_is_too_small_is_named_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"alignprop needs about 14 GB .* the card has 8 GB; --checkpoint takes less"):
        fit(Needs(held=10e9, sampling=0.5e9, training=2e9), 8e9, "alignprop")


@pytest.mark.parametrize("gigabytes", [24, 40, 80])
def test_the_presets_fit_their_cards(gigabytes: int, sd1: Costs) -> None:
    preset = read_presets([f"gpu-{gigabytes}gb"])
    for algo, image in {"ddpo": TRANSITIONS, "tdpo": TRANSITIONS, "alignprop": CHAIN}.items():
        own = {**preset, **preset["algorithms"].get(algo, {})}
        sampling, training = fit(needs(sd1, True, REWARDS, image, own["checkpoint"]), gigabytes * 1e9, algo)
        assert training / 2 < own["micro_batch"] <= training <= sampling, algo


@pytest.mark.parametrize("gigabytes", [24, 40, 80])
def test_the_presets_change_no_experiment(gigabytes: int) -> None:
    preset = read_presets([f"gpu-{gigabytes}gb"])
    assert {name for own in (preset, *preset.pop("algorithms").values()) for name in own} <= Runtime.model_fields.keys()


def test_checkpoints_and_precision_take_less(sd1: Costs) -> None:
    plain = needs(sd1, True, 0, TRANSITIONS, checkpoint=False)
    assert needs(sd1, True, 0, TRANSITIONS, checkpoint=True).training < plain.training / 3
    assert needs(sd1, False, 0, TRANSITIONS, checkpoint=False).training == plain.training / 2
    assert needs(sd1, True, 0, ImageCost(), checkpoint=False).training == plain.sampling
    unet, vae, text = ARCHITECTURES["sd1"]
    full = needs(costs(unet, vae, torch.float32, text), True, 0, TRANSITIONS, checkpoint=False)
    assert full.held == 2 * plain.held and full.training > 1.3 * plain.training


def test_weights_of_shared_networks_count_once() -> None:
    suite = get_suite("mini")
    one, two = get_reward("imagereward", suite), get_reward("pickscore", suite)
    alone = [weight_bytes([reward]) for reward in (one, two)]
    assert min(alone) > 0 and weight_bytes([one, two, one]) == sum(alone)


def test_a_cpu_takes_the_default() -> None:
    nothing: Any = SimpleNamespace()
    assert choose(nothing, "float32", [], True, "cpu", algo="any", image=CHAIN, checkpoint=False) == (
        MICRO_BATCH,
        MICRO_BATCH,
    )


def test_a_gpu_is_asked_for_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from a loaded pipeline and loaded rewards, on cards that are not here."""
    suite = get_suite("mini")
    pipeline, rewards = suite.pipeline(), [get_reward("imagereward", suite)]
    for gigabytes, expected in ((200, MICRO_BATCH), (3, None)):
        card = SimpleNamespace(total_memory=gigabytes * 1e9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        if expected:
            chosen = choose(pipeline, "float16", rewards, True, "cuda", algo="any", image=CHAIN, checkpoint=False)
            assert chosen == (expected,) * 2
        else:
            sampling, training = choose(
                pipeline, "float16", rewards, True, "cuda:0", algo="any", image=CHAIN, checkpoint=False
            )
            assert 1 <= training < sampling


def test_sampling_alone_takes_what_training_would_leave_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """``sample`` and ``eval`` must not ask for the memory of a backward pass, and always try at least one image."""
    pipeline = get_suite("mini").pipeline()
    need = needs(pipeline_costs(pipeline, "float32"), True, 0, ImageCost(), checkpoint=False)
    for images, expected in ((0.5, 1), (1.5, 1), (7.5, 7), (1e6, MICRO_BATCH)):
        total = (need.held + images * need.sampling) / (1 - HEADROOM)
        card = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert choose_sampling(pipeline, "float32", (), True, "cuda") == expected
    assert choose_sampling(pipeline, "float32", (), True, "cpu") == MICRO_BATCH
