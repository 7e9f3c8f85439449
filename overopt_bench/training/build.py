"""A configured run put together: policy, budget, generators and algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overopt_bench.compute.processes import World
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig, check_prompts
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.options import PolicySettings
from overopt_bench.registry import algorithms, mitigations
from overopt_bench.seeding import Generators
from overopt_bench.sizing import micro_batch
from overopt_bench.training.budget import Budget, Metered
from overopt_bench.types import Algorithm, Mitigations, Policy, Reward, Suite, TrainContext
from overopt_bench.types.mitigation import parse_mitigation


@dataclass(frozen=True)
class Assembly:
    """What trains one run, put together.

    Attributes:
        runtime: with its device, micro-batch and recomputation settled.
        policy: the policy to train.
        budget: what may be spent.
        generators: the random numbers of the run, by purpose.
        algorithm: what trains it.
        own_encoder: whether critics see the proxy's own features rather than the suite's CLIP.
    """

    runtime: Runtime
    policy: DiffusionPolicy
    budget: Budget
    generators: Generators
    algorithm: Algorithm
    own_encoder: bool


def assemble(
    config: RunConfig, suite: Suite, rewards: Mapping[str, Reward], runtime: Runtime, world: World
) -> Assembly:
    """Load the base model and build what trains it; nothing is written.

    Args:
        config: the configuration of the run.
        suite: gives the base model and the prompts.
        rewards: loaded, the proxy among them; all that will be on the device count where micro-batches are chosen.
        runtime: the device and the settings of speed that were asked for.
        world: the processes of the run.

    Raises:
        UserError: for a pipeline that cannot be trained or does not run, a GPU too small for it, or prompts that no
            reward can judge.
    """
    check_prompts(config, suite)
    cls = algorithms.get(config.algo)
    params = cls.Params(**config.params)
    pipeline = suite.pipeline()
    checkpoint = cls.recomputes and not suite.small if runtime.checkpoint is None else runtime.checkpoint
    runtime = runtime.model_copy(update={"device": str(world.device), "checkpoint": checkpoint})
    sampling = training = runtime.micro_batch
    if sampling is None or training is None:
        sampling, training = micro_batch.choose(
            pipeline, config.precision, rewards.values(), config.guidance_scale != 1, runtime.device, algo=cls.name,
            image=cls.cost(params, config.num_steps), checkpoint=checkpoint,
        )  # fmt: skip
    policy = build_policy(
        suite, pipeline, config, config.seed, runtime.model_copy(update={"micro_batch": sampling}), world
    )
    policy.try_once()
    budget = Budget(config.budget_unit, config.budget, lambda: policy.nfe)
    generators, prompts = Generators(config.seed), config.training_prompts(suite)
    proxy = rewards[config.proxy]
    encoder, feature_dim, own_encoder = critic_encoder(proxy, suite)
    context = TrainContext(
        policy=policy, proxy=Metered(proxy, budget, world),
        encoder=encoder, feature_dim=feature_dim, prompts=prompts,
        draw_prompts=lambda n, group: draw_prompts(prompts, generators["prompts"], n, group), generators=generators,
        budget_left=budget.queries_left, micro_batch=training, checkpoint=checkpoint,
        mitigations=make_mitigations(config.mitigation, policy),
    )  # fmt: skip
    algorithm = cls(context, params)
    settled = runtime.model_copy(update={"micro_batch": training})
    return Assembly(settled, policy, budget, generators, algorithm, own_encoder)


def build_policy(
    suite: Suite, pipeline: Any, settings: PolicySettings, seed: int, runtime: Runtime, world: World | None = None
) -> DiffusionPolicy:
    """Make a policy of a suite's pipeline, with a fresh adapter.

    Args:
        suite: gives the sampler.
        pipeline: as the suite loaded it.
        settings: how it is sampled and what of it is trained.
        seed: of the adapter's initial weights.
        runtime: with the micro-batch of the sampling.
        world: the processes that share the sampling.
    """
    return DiffusionPolicy(
        pipeline, num_steps=settings.num_steps, guidance_scale=settings.guidance_scale, eta=settings.eta,
        lora_rank=settings.lora_rank, lora_alpha=settings.lora_alpha, seed=seed, precision=settings.precision,
        runtime=runtime, world=world, schedule=suite.schedule(settings.num_steps, settings.eta, runtime.device),
    )  # fmt: skip


def critic_encoder(proxy: Reward, suite: Suite) -> tuple[Callable[[Tensor], Tensor], int, bool]:
    """Give what a critic sees images through, its D, and whether it is the proxy's own rather than the suite's CLIP."""
    if proxy.feature_dim is None:
        return suite.clip_features, suite.clip_dim, False
    return proxy.features, proxy.feature_dim, True


def make_mitigations(texts: Sequence[str], policy: Policy) -> Mitigations:
    """Build the mitigations of a run from the texts of its configuration, such as ``kl:beta=0.01,where=loss``."""
    chosen = []
    for text in texts:
        name, values = parse_mitigation(text)
        cls = mitigations.get(name)
        chosen.append(cls(policy, cls.Params(**values)))
    return Mitigations(chosen)


def draw_prompts(prompts: Sequence[str], generator: torch.Generator, n: int, per_prompt: int) -> list[str]:
    """Draw prompts in groups of equal ones; groups differ until every prompt was used once.

    With groups of 1 the draw is i.i.d. with replacement, as in DDPO.

    Args:
        prompts: what is drawn from.
        generator: what is drawn with.
        n: how many to draw, a multiple of ``per_prompt``.
        per_prompt: the size of a group.
    """
    if n % per_prompt:
        raise ValueError(f"{n} prompts cannot be groups of {per_prompt}")
    if per_prompt == 1:
        return [prompts[int(k)] for k in torch.randint(len(prompts), (n,), generator=generator)]
    groups: list[int] = []
    while len(groups) < n // per_prompt:
        groups += torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[k] for k in groups[: n // per_prompt] for _ in range(per_prompt)]
