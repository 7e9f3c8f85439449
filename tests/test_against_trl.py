"""DDPO and AlignProp against trl 0.23's own trainers: same pipeline, noise, adapter weights and rewards.

``golden/trl.npz`` holds what ``DDPOTrainer`` and ``AlignPropTrainer`` computed (official/dump_trl.py). Rollouts, losses,
gradients and the first AdamW update agree to 1e-4, each as ||ours - trl|| / ||trl||. What is written differently:

* log-probabilities: ours are sums over the latent's d = C h w dimensions, trl's are means: ours / d = trl's
  (``log_prob_reduction="mean"`` divides). A float32 sum of size ~d costs a resolution of about 1e-7 in mean units.
* previous timestep: both take alphas_cumprod[max(tau - 1000 / T, 0)], at the last step alphas_cumprod[0], not 1.
* KL estimate: trl reports mean(l^2) / 2 of the log-ratio l, ours mean(e^l - 1 - l) = mean(l^2 / 2 + l^3 / 6 + ...).
* loss over steps: trl accumulates each step's mean over B samples, divided by T; ours is the mean over all B T.
* advantages: (r - mean) / (std + 1e-6), population std, appended before use, in both. (Without per-prompt statistics
  trl divides by std + 1e-8; ours has no such mode.) The clip to +-5 is in trl's loss and in our epoch.
* AlignProp's loss: trl's is 10 - mean(r), ours mean |r - 10| times a coefficient, equal for r < 10 and coefficient 1;
  ``loss="maximise"`` is trl's less the constant. In both the reward sees the image clamped to [0, 1], and a clamped
  pixel has no gradient. trl's truncated_backprop_timestep k detaches the predictions of steps i < k; ours runs those
  steps without a graph, which is the same because the initial latent is a leaf: grad_steps = T - k.
* AdamW's first step is u = -lr (g / (|g| + eps) + wd w), eps = 1e-8: nearly a sign. It passes a change of g on as
  lr eps dg / (|g| + eps)^2, and for |g| < |dg| as up to 2 lr, so where g is itself only rounding error (below 1e-3 of
  its rms, one or two elements in a hundred) the two steps differ by up to lr. Both are held to this rule with their own
  gradient, and to each other to 1e-4 in the other 98 %; the weights as a whole agree too.
* float32 rounding: the two U-Nets differ in batch size (trl's 4 transitions a pass, ours 20) and memory layout
  (ours is channels_last). An error d_eps of the guided prediction reaches the score z = (x' - mu) / sigma of a *given*
  x' as c d_eps / sigma, c = d mu / d eps (with x' sampled by the same pass it cancels). At T = 5 the fourth step (201 to
  1) has sigma = 0.041 and c = -0.57: the gradient on trl's own chains differs by 8e-5 (3e-5 with trl's memory layout),
  in the whole steps by about 1e-5. Hence the wider bound of GIVEN_CHAIN. The same error, 3e-6 in log-ratios of up to
  1.7e-3, and ours of 1.2e-7 in e^l - 1 - l, limit the KL estimate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn
from toy_policy import context

from overopt_bench.algorithms.alignprop import AlignProp
from overopt_bench.algorithms.ddpo import DDPO
from overopt_bench.algorithms.ppo import PolicyUpdater
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite
from overopt_bench.suites.mini import WEIGHTS
from overopt_bench.types import TrainContext

GOLDEN = Path(__file__).parent / "golden" / "trl.npz"
PROVENANCE: dict[str, Any] = json.loads(GOLDEN.with_suffix(".json").read_text())
TOLERANCE = 1e-4
GIVEN_CHAIN = 3e-4  # of a gradient on chains that trl sampled; 8e-5 here, but rounding depends on the processor
T, D = 5, 4 * 8 * 8

with np.load(GOLDEN) as archive:
    TRL = {name: torch.from_numpy(archive[name]) for name in archive.files}
LORA = {name.removeprefix("lora/"): value for name, value in TRL.items() if name.startswith("lora/")}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the golden file: sums are then always taken in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stored(DiffusionPolicy):
    """The policy of the golden file; its rollouts take the stored noise."""

    def __init__(self) -> None:
        super().__init__(
            get_suite("mini").pipeline(), num_steps=T, guidance_scale=5.0, eta=1.0, lora_rank=4, lora_alpha=4, seed=0
        )
        self.load_state_dict({name: value.clone() for name, value in LORA.items()})

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        return TRL["noise"][:, :n]

    def adapter(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of ``state_dict``, whose tensors share their memory."""
        by_address = {p.data_ptr(): p for p in self.trainable()}
        return {name: by_address[value.data_ptr()] for name, value in self.state_dict().items()}

    def flat(self) -> Tensor:
        """All adapter weights in the golden file's order."""
        state = self.state_dict()
        return torch.cat([state[name].flatten() for name in LORA]).clone()

    def shift(self, change: Tensor) -> None:
        """Add to all adapter weights, in the golden file's order."""
        parts = change.split([value.numel() for value in LORA.values()])
        self.load_state_dict({k: v + d.view_as(v) for (k, v), d in zip(LORA.items(), parts, strict=True)})


def red_minus_blue(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def given(policy: Stored, prompts: Sequence[str]) -> TrainContext:
    """What an algorithm needs, with the stand-in reward and these prompts."""
    ctx = context(policy)
    ctx.proxy = red_minus_blue
    ctx.draw_prompts = lambda n, group: list(prompts)
    return ctx


def watch(optimizer: Any, policy: Stored) -> list[Tensor]:
    """The gradient, clipped, that each of the optimizer's steps will see."""
    adamw: torch.optim.Optimizer = getattr(optimizer, "adamw", optimizer)
    seen: list[Tensor] = []

    def keep(*_: Any) -> None:
        adapter = policy.adapter()
        seen.append(torch.cat([torch.as_tensor(adapter[name].grad).flatten() for name in LORA]).clone())

    adamw.register_step_pre_hook(keep)
    return seen


def difference(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||, in float64."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def adamw(start: Tensor, gradient: Tensor, lr: float, weight_decay: float = 1e-4, eps: float = 1e-8) -> Tensor:
    """The weights after AdamW's first step, in float64."""
    start, gradient = start.double(), gradient.double()
    return start * (1 - lr * weight_decay) - lr * gradient / (gradient.abs() + eps)


def check_update(
    case: str, policy: Stored, gradients: list[Tensor], grad_norm: float, lr: float, tolerance: float = TOLERANCE
) -> None:
    """One update was made, with trl's gradient to ``tolerance``, to trl's weights."""
    (gradient,) = gradients
    theirs, updated = TRL[f"{case}/gradient"], TRL[f"{case}/updated"]
    assert grad_norm == pytest.approx(TRL[f"{case}/grad_norm"].item(), rel=TOLERANCE)
    assert difference(gradient, theirs) < tolerance
    start = torch.cat([value.flatten() for value in LORA.values()])
    for seen, weights in ((gradient, policy.flat()), (theirs, updated)):  # the same rule, to float32 weights below 2
        torch.testing.assert_close(weights.double(), adamw(start, seen, lr), rtol=0, atol=2.4e-7 + 1e-4 * lr)
    assert difference(policy.flat(), updated) < TOLERANCE
    clear = theirs.abs() > 1e-3 * theirs.square().mean().sqrt()
    assert clear.float().mean() > 0.97
    assert difference((policy.flat() - start)[clear], (updated - start)[clear]) < TOLERANCE


def test_pipeline_is_that_of_the_golden_file() -> None:
    """Where this fails the shipped weights are new: run official/dump_trl.py again."""
    for name, digest in PROVENANCE["weights_sha256"].items():
        assert hashlib.sha256((WEIGHTS / "pipeline" / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("case", ["ddpo_on_policy", "ddpo_clipped"])
@torch.no_grad()
def test_rollout(case: str) -> None:
    policy, prompts = Stored(), PROVENANCE["prompts"]
    if case == "ddpo_clipped":
        policy.shift(PROVENANCE["lora"]["drift"] * TRL["direction"])
    else:
        assert difference(policy.encode(prompts).embeds, TRL[f"{case}/prompt_embeds"]) < TOLERANCE
        assert difference(policy.encode.unconditional(4).embeds, TRL[f"{case}/negative_prompt_embeds"]) < TOLERANCE
        assert torch.equal(policy.timesteps, TRL[f"{case}/timesteps"])
    chain, _ = policy.sample(TRL["noise"], prompts)
    assert difference(chain.latents, TRL[f"{case}/latents"]) < TOLERANCE
    assert difference(chain.log_probs / D, TRL[f"{case}/log_probs_old"]) < TOLERANCE
    if case == "ddpo_on_policy":
        assert difference(chain.images, TRL[f"{case}/images"]) < TOLERANCE


@pytest.mark.parametrize("case", ["ddpo_on_policy", "ddpo_clipped"])
def test_ddpo_update(case: str) -> None:
    policy, settings = Stored(), PROVENANCE["ddpo"]
    params = DDPO.Params(
        clip_range=settings["train_clip_range"], log_prob_reduction="mean", weight_decay=1e-4, max_grad_norm=1.0
    )
    updater = PolicyUpdater(given(policy, PROVENANCE["prompts"]), params, lr=settings["train_learning_rate"])
    gradients = watch(updater.optimizer, policy)
    latents, old = TRL[f"{case}/latents"], TRL[f"{case}/log_probs_old"]
    sample, step = torch.arange(4).repeat_interleave(T), torch.arange(T).repeat(4)
    prompts = [PROVENANCE["prompts"][k] for k in sample.tolist()]
    x, x_next = latents[sample, step], latents[sample, step + 1]
    with torch.no_grad():
        log_probs = policy.transition(x, step, prompts).log_prob(x_next).view(4, T) / D
    assert difference(log_probs, TRL[f"{case}/log_probs"]) < TOLERANCE
    advantages = TRL["advantages"].clamp(-settings["train_adv_clip_max"], settings["train_adv_clip_max"])
    values = updater.step(latents, sample, step, prompts, D * old[sample, step], advantages[sample])
    metrics = dict(zip(PolicyUpdater.METRICS, values, strict=True))

    assert metrics["loss"] == pytest.approx(TRL[f"{case}/loss"].mean().item(), rel=TOLERANCE)
    log_ratio = (TRL[f"{case}/log_probs"] - old).double()
    assert metrics["ratio/mean"] == pytest.approx(log_ratio.exp().mean().item(), abs=1e-6)
    # no ratio of trl's is so near the clip range that rounding decides
    assert ((log_ratio.expm1().abs() - 1e-4).abs() > 3e-6).all()
    assert metrics["clipfrac"] == pytest.approx(TRL[f"{case}/clipfrac"].mean().item())
    assert metrics["approx_kl"] == pytest.approx((log_ratio.expm1() - log_ratio).mean().item(), abs=3e-8)
    assert TRL[f"{case}/approx_kl"].mean().item() == pytest.approx(
        0.5 * log_ratio.square().mean().item(), rel=TOLERANCE
    )
    check_update(case, policy, gradients, metrics["grad_norm"], settings["train_learning_rate"], GIVEN_CHAIN)
    assert (0.2 < metrics["clipfrac"] < 0.8) if case == "ddpo_clipped" else metrics["grad_norm"] > 1  # clipped norm


def test_ddpo_epoch() -> None:
    """A whole ``DDPOTrainer.step``: rewards, statistics of a prompt with enough samples and of one without, update."""
    policy, settings, case = Stored(), PROVENANCE["ddpo_step"], "ddpo_step"
    params = DDPO.Params(
        samples_per_epoch=4, updates_per_epoch=1, lr=settings["train_learning_rate"], weight_decay=1e-4,
        max_grad_norm=1.0, clip_range=settings["train_clip_range"], advantage_clip=settings["train_adv_clip_max"],
        stats_buffer=settings["per_prompt_stat_tracking_buffer_size"],
        stats_min_count=settings["per_prompt_stat_tracking_min_count"],
    )  # fmt: skip
    algorithm = DDPO(given(policy, PROVENANCE["ddpo_step_prompts"]), params)
    gradients = watch(algorithm.updater.optimizer, policy)
    metrics = algorithm.step()
    assert metrics["proxy/mean"] == pytest.approx(TRL[f"{case}/rewards"].mean().item(), rel=TOLERANCE)
    spread = TRL[f"{case}/advantages"].std(unbiased=False).item()
    assert metrics["advantage_spread"] == pytest.approx(spread, rel=TOLERANCE)
    assert metrics["loss"] == pytest.approx(TRL[f"{case}/loss"].item(), rel=TOLERANCE)
    check_update(case, policy, gradients, metrics["grad_norm"], settings["train_learning_rate"])


@pytest.mark.parametrize("grad_steps", [2, 5])
@pytest.mark.parametrize("loss", ["target", "maximise"])
def test_alignprop_update(grad_steps: int, loss: Literal["target", "maximise"]) -> None:
    policy, settings, case = Stored(), PROVENANCE["alignprop"], f"alignprop_{grad_steps}"
    assert grad_steps == T - settings["cases"][str(grad_steps)]
    params = AlignProp.Params(
        batch_size=4, truncation="fixed", grad_steps=grad_steps, lr=settings["train_learning_rate"], weight_decay=1e-4,
        max_grad_norm=1.0, loss=loss, target=10.0, loss_coefficient=1.0,
    )  # fmt: skip
    algorithm = AlignProp(given(policy, PROVENANCE["prompts"]), params)
    gradients = watch(algorithm.optimizer, policy)
    metrics = algorithm.step()
    constant = 10.0 if loss == "maximise" else 0.0
    assert metrics["loss"] + constant == pytest.approx(TRL[f"{case}/loss"].item(), rel=TOLERANCE)
    assert metrics["proxy/mean"] == pytest.approx(TRL[f"{case}/rewards"].mean().item(), rel=TOLERANCE)
    check_update(case, policy, gradients, metrics["grad_norm"], settings["train_learning_rate"])


def test_a_reward_of_trl_sees_images_between_zero_and_one() -> None:
    """Not the [0.5, 1] of AlignProp's 2024 code, and clamped like ours."""
    for k in (2, 5):
        images = TRL[f"alignprop_{k}/images"]
        assert images.min() == 0 and images.max() == 1
        torch.testing.assert_close(red_minus_blue(images, []), TRL[f"alignprop_{k}/rewards"])
        assert TRL[f"alignprop_{k}/loss"].item() == pytest.approx(10 - TRL[f"alignprop_{k}/rewards"].mean().item())
