"""Evaluation apart from training: anything that draws images from noise can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.errors import UserError
from overopt_bench.evaluation.evaluator import Evaluator, evaluate_split
from overopt_bench.evaluation.metrics import diversity
from overopt_bench.evaluation.sampler import Drawn, PolicySampler
from overopt_bench.evaluation.splits import image_noise, make_split
from overopt_bench.registry import get_reward, get_suite

PROMPTS = {"train": ["fox face", "owl"], "heldout": ["cat"], "heldout_more": ["dog"]}
OPTIONS = {"num_inference_steps": 4, "guidance_scale": 1.5, "output_type": "pt"}


class Plain:
    """Somebody's pipeline of diffusers, which nobody trained here."""

    lacks_kl = "nobody knows what it was trained from"
    noise_shape = (1, 4, 8, 8)

    def __init__(self, pipeline: Any) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline = pipeline

    def draw(self, noise: Tensor, prompts: Sequence[str], *, with_kl: bool) -> Drawn:
        return Drawn(self.pipeline(list(prompts), latents=noise[0], **OPTIONS).images)


def test_a_plain_pipeline_of_diffusers_is_measured() -> None:
    """The numbers are those of images that diffusers draws one by one from the evaluation's noise."""
    suite = get_suite("mini")
    rewards = {name: get_reward(name, suite) for name in ("human", "aesthetic")}
    pipeline = suite.pipeline()
    evaluator = Evaluator(Plain(pipeline), rewards, suite.clip_features, PROMPTS, images=4, eval_seed=5)
    row, details, images = evaluator()
    assert evaluator.lacks == ("no path KL: nobody knows what it was trained from",)
    assert not [key for key in row if "kl" in key] and [detail["path_kl"] for detail in details] == [None] * 3
    assert [detail["split"] for detail in details] == [*PROMPTS] and images.shape == (8, 3, 32, 32)
    for split, prompts in (("train", ["fox face"] * 4), ("heldout", ["cat"] * 2)):
        noise = [image_noise(5, prompt, k, (1, 4, 8, 8)) for k, prompt in enumerate(prompts)]
        alone = torch.cat([pipeline(p, latents=z, **OPTIONS).images for p, z in zip(prompts, noise, strict=True)])
        for name, reward in rewards.items():
            assert row[f"{split}/{name}/mean"] == pytest.approx(reward(alone, prompts).mean().item(), abs=1e-4)
        assert row[f"{split}/diversity"] == pytest.approx(diversity(suite.clip_features(alone), prompts), abs=1e-4)
    again = evaluator()
    assert again[0] == row and torch.equal(again[2], images)
    with pytest.raises(UserError, match="images of the base model, and this sampler has none"):
        evaluator.base_samples()


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    """Mini's, with an adapter that does something."""
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=3, guidance_scale=1.5, eta=1.0, lora_rank=2, lora_alpha=2, seed=0,
        runtime=Runtime(device="cpu"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.trainable():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def test_a_policy_draws_as_it_samples_and_its_base_as_without_the_adapter(policy: DiffusionPolicy) -> None:
    sampler = PolicySampler(policy)
    split = make_split("train", ["owl", "cat"], 4, 0, sampler.noise_shape)
    before = policy.nfe
    own, base = sampler.draw(split.noise, split.prompts, with_kl=True), PolicySampler(policy, base=True)
    drawn = evaluate_split(base, split, {}, get_suite("mini").clip_features, with_kl=True)
    assert policy.nfe == before  # looking is free
    trajectory, kl = policy.sample(split.noise, split.prompts, with_kl=True)
    assert kl is not None and own.kl is not None and drawn.kl is None
    assert torch.equal(own.images, trajectory.images) and torch.equal(own.kl, kl) and float(kl.sum()) > 0
    with policy.base():
        assert torch.equal(drawn.images, policy.sample(split.noise, split.prompts)[0].images)
    assert not torch.equal(drawn.images, own.images)


def test_only_the_first_two_splits_have_a_kl(policy: DiffusionPolicy) -> None:
    suite = get_suite("mini")
    evaluator = Evaluator(PolicySampler(policy), {}, suite.clip_features, PROMPTS, images=4)
    row, details, _ = evaluator()
    assert evaluator.lacks == () and [len(detail["path_kl"] or ()) for detail in details] == [4, 2, 0]
    assert [key for key in row if key.endswith("sqrt_kl")] == ["train/sqrt_kl", "heldout/sqrt_kl"]


def test_a_score_that_is_none_names_its_reward(policy: DiffusionPolicy) -> None:
    class Nothing:
        """Says nothing of the second image."""

        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            return torch.tensor([0.0, float("nan")])

    sampler = PolicySampler(policy)
    split = make_split("train", ["owl"], 2, 0, sampler.noise_shape)
    broken: Any = {"nothing": Nothing()}
    with pytest.raises(FloatingPointError, match=r"reward 'nothing' gave nan for prompt 'owl' \(1 of 2\)"):
        evaluate_split(sampler, split, broken, get_suite("mini").clip_features)
