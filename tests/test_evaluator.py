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
from overopt_bench.evaluation import sampler as sampling
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
    again = sampler.draw(split.noise, split.prompts, with_kl=True)  # the base model's first step is known by now
    assert again.kl is not None and torch.equal(again.kl, kl)
    with policy.base():
        assert torch.equal(drawn.images, policy.sample(split.noise, split.prompts)[0].images)
    assert not torch.equal(drawn.images, own.images)


def passes(policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each pass of the U-Net from now on."""
    rows: list[int] = []
    forward = policy.network.forward
    monkeypatch.setattr(policy.network, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k))
    return rows


def test_the_first_evaluation_measures_no_distance_that_is_known(
    policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first update it is 0, as the passes that are saved would say; afterwards they are taken."""
    sampler = PolicySampler(policy)
    split = make_split("train", ["owl", "cat"], 4, 0, sampler.noise_shape)
    effect = [parameter for name, parameter in policy.unet.named_parameters() if "lora_B" in name]
    trained = [parameter.data.clone() for parameter in effect]
    for parameter in effect:
        parameter.data.zero_()
    try:
        rows = passes(policy, monkeypatch)
        kl = sampler.draw(split.noise, split.prompts, with_kl=True).kl
        assert kl is not None and rows == [8] * 3  # both branches of guidance, three steps
        measured = policy.sample(split.noise, split.prompts, with_kl=True)[1]
        assert measured is not None and torch.equal(kl, measured) and kl.abs().sum() == 0
        effect[-1].data.fill_(1e-3)
        rows.clear()
        moved = sampler.draw(split.noise, split.prompts, with_kl=True).kl
        assert moved is not None and moved.sum() > 0 and rows == [8] * 6
        sampler.draw(split.noise, split.prompts, with_kl=True)
        assert rows == [8] * 11  # the base model's first step from this noise is known
    finally:
        for parameter, value in zip(effect, trained, strict=True):
            parameter.data.copy_(value)


def test_a_cpu_decodes_in_parts_what_is_no_base_sample(
    policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images are those of a whole batch but for rounding; those that rewards are standardised on are to the bit."""
    monkeypatch.setattr(sampling, "DECODED", 2)
    prompts = ["owl"] * 3
    noise = torch.randn((policy.num_steps + 1, 3, *policy.latent_shape), generator=torch.Generator().manual_seed(0))
    rows: list[int] = []
    decode = policy.decode
    monkeypatch.setattr(policy, "decode", lambda x: rows.append(len(x)) or decode(x))
    drawn = PolicySampler(policy).draw(noise, prompts, with_kl=False).images
    base = PolicySampler(policy, base=True).draw(noise, prompts, with_kl=False).images
    assert rows == [2, 1, 3]
    assert torch.allclose(drawn, policy.sample(noise, prompts)[0].images, rtol=0, atol=1e-5)
    with policy.base():
        assert torch.equal(base, policy.sample(noise, prompts)[0].images)


def test_distances_do_not_hang_on_micro_batches(policy: DiffusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model's first step that was kept for one size of micro-batch is none of another's."""
    sampler = PolicySampler(policy)
    split = make_split("train", ["owl", "cat"], 4, 0, sampler.noise_shape)
    whole = sampler.draw(split.noise, split.prompts, with_kl=True).kl
    monkeypatch.setattr(policy, "micro_batch", 3)
    parts = sampler.draw(split.noise, split.prompts, with_kl=True).kl
    assert whole is not None and parts is not None and torch.allclose(whole, parts, rtol=1e-3, atol=1e-4)


def test_between_start_and_end_only_the_followed_splits_are_drawn(policy: DiffusionPolicy) -> None:
    suite = get_suite("mini")
    evaluator = Evaluator(PolicySampler(policy), {}, suite.clip_features, PROMPTS, images=4)
    whole, part = evaluator(), evaluator(whole=False)
    assert [detail["split"] for detail in part[1]] == [*PROMPTS][:2]
    assert part[1] == whole[1][:2] and torch.equal(part[2], whole[2][:6])
    assert part[0] == {key: value for key, value in whole[0].items() if key.split("/")[0] in [*PROMPTS][:2]}


def test_rewards_and_diversity_share_one_pass_of_an_encoder(policy: DiffusionPolicy) -> None:
    """Three rewards and diversity read one embedding; text is read once a run; the scores are those of each alone."""
    suite = get_suite("mini")
    names = ("aesthetic", "clipscore", "imagereward", "pickscore", "jpeg_compressibility", "jpeg_incompressibility")
    rewards = {name: get_reward(name, suite) for name in names}
    clip, seen = get_reward("clipscore", suite).clip, {"images": 0, "texts": 0}
    clip.vision_model.register_forward_hook(lambda *_: seen.update(images=seen["images"] + 1))
    clip.text_model.register_forward_hook(lambda *_: seen.update(texts=seen["texts"] + 1))
    evaluator = Evaluator(PolicySampler(policy), rewards, suite.clip_features, PROMPTS, images=4)
    row, details, images = evaluator()
    assert seen == {"images": 3, "texts": 3}
    assert evaluator()[0] == row and seen == {"images": 6, "texts": 3} and not evaluator.shared.images
    for detail in details:
        start, prompts = detail["first_cell"], detail["prompts"]
        for name, reward in rewards.items():
            alone = reward(images[start : start + len(prompts)], prompts)
            assert detail["scores"][name] == pytest.approx(alone.tolist(), abs=1e-6)


def test_only_the_first_two_splits_have_a_kl(policy: DiffusionPolicy) -> None:
    suite = get_suite("mini")
    evaluator = Evaluator(PolicySampler(policy), {}, suite.clip_features, PROMPTS, images=4)
    row, details, _ = evaluator()
    assert evaluator.lacks == () and [len(detail["path_kl"] or ()) for detail in details] == [4, 2, 0]
    assert [key for key in row if key.endswith("sqrt_kl")] == ["train/sqrt_kl", "heldout/sqrt_kl"]


@torch.no_grad()
def test_kl_of_each_step_is_that_of_its_two_gaussians(policy: DiffusionPolicy) -> None:
    """The mean over images of ||mean - base mean||^2 / (2 std^2), along the chains of the trained adapter."""
    evaluator = Evaluator(PolicySampler(policy), {}, get_suite("mini").clip_features, PROMPTS, images=4)
    _, details, _ = evaluator()
    for split, detail in zip(evaluator.splits[:2], details, strict=False):
        x, expected = split.noise[0], []
        for i in range(policy.num_steps):
            steps = torch.full((len(x),), i)
            step = policy.transition(x, steps, split.prompts)
            with policy.base():
                moved = step.mean - policy.transition(x, steps, split.prompts).mean
            expected.append((moved**2 / (2 * step.std**2)).flatten(1).sum(1).mean().item())
            x = step.mean + step.std * split.noise[i + 1]
        assert detail["kl_by_step"] == pytest.approx(expected, rel=1e-3) and min(expected) > 1e-3
        assert sum(detail["kl_by_step"]) == pytest.approx(sum(detail["path_kl"]) / len(x), rel=1e-5)
    assert details[2]["kl_by_step"] is None


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
