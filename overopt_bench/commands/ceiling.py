"""What a temporal critic could explain of a proxy's returns: of the base model of a suite, or of a run's policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt_bench.commands.questions import FOLDS, Subject
from overopt_bench.commands.requests import Questions
from overopt_bench.commands.trained import restore_calibration, trained_policy, trained_queries, untrained_policy
from overopt_bench.compute.runtime import Runtime
from overopt_bench.errors import RunError, UserError
from overopt_bench.evaluation.ceiling import BASE, Ceiling, of_run
from overopt_bench.lazy import torch
from overopt_bench.plugins import probe_foreign_rewards
from overopt_bench.registry import get_reward
from overopt_bench.seeding import stable_seed

if TYPE_CHECKING:
    from torch import Tensor

    from overopt_bench.diffusion.policy import DiffusionPolicy
    from overopt_bench.types import Reward

EACH = 16  # images of a prompt, as many as make its mean and deviation known


def ask(asked: Questions, subject: Subject, runtime: Runtime) -> Ceiling:
    """Draw chains of the policy, score their images, and measure what critics explain of the returns.

    Args:
        asked: what the user wants to know.
        subject: what is measured, as ``choose`` settled it.
        runtime: where and how fast.

    Raises:
        UserError: where weights are missing, the run's adapter is missing or damaged, or a proxy gives a prompt's images
            one score, for every prompt.
        RunError: where the adapter, an image or a score is not finite.
    """
    from overopt_bench.evaluation.explaining import explain

    probe_foreign_rewards(subject.proxies, subject.suite, subject.prompts)
    loaded = {name: get_reward(name, subject.suite) for name in subject.proxies}
    policy, words, queries = policy_of(subject, asked.seed, loaded, runtime)
    try:
        drawn = draw(policy, subject, loaded, asked)
    except FloatingPointError as error:
        raise RunError(f"{error}, in {str(policy.dtype).removeprefix('torch.')}") from None
    numbers = {prompt: k for k, prompt in enumerate(dict.fromkeys(drawn.prompts))}
    groups = torch.tensor([numbers[prompt] for prompt in drawn.prompts])
    returns = {name: within_prompts(scores, groups) for name, scores in drawn.scores.items()}
    for name, values in returns.items():
        if not bool(values.any()):
            raise UserError(
                f"the proxy {name!r} gives all images of a prompt the same score: its returns have no spread, and no critic"
                " has anything to explain"
            )
    rows = {
        name: tuple(explain(
            drawn.features[name].numpy(), values.double().numpy(), groups.numpy(), drawn.embeddings.numpy(),
            trained_steps=subject.trained_steps, folds=FOLDS, seed=asked.seed % 2**32,
        ))
        for name, values in returns.items()
    }  # fmt: skip
    return Ceiling(
        words, queries, subject.suite.name, subject.split, len(numbers), len(groups), asked.seed, policy.num_steps,
        subject.trained_steps, rows,
    )  # fmt: skip


def policy_of(
    subject: Subject, seed: int, loaded: Mapping[str, Reward], runtime: Runtime
) -> tuple[DiffusionPolicy, str, int | None]:
    """Load the policy that is measured; give it, whose it is in words, and the queries that were spent on it."""
    if subject.run is None or subject.config is None:
        policy = untrained_policy(subject.suite, subject.settings, seed, runtime, loaded.values())
        policy.try_once()
        return policy, BASE, 0
    policy = trained_policy(subject.run, subject.config, subject.suite, runtime, loaded.values())
    queries = trained_queries(subject.run, policy)
    return policy, of_run(subject.run, queries), queries


@dataclass(frozen=True)
class Chains:
    """N chains on the CPU: scores ``[N]`` and step features ``[N, T, D]`` by proxy, and prompt embeddings ``[N, P]``."""

    prompts: list[str]
    scores: dict[str, Tensor]
    features: dict[str, Tensor]
    embeddings: Tensor


def draw(policy: DiffusionPolicy, subject: Subject, loaded: Mapping[str, Reward], asked: Questions) -> Chains:
    """Draw chains once for all proxies, and keep of them what a critic sees and what the proxies say."""
    from overopt_bench.encoders.latents import latent_features
    from overopt_bench.evaluation.scoring import all_scores
    from overopt_bench.training.build import critic_encoder, draw_prompts

    sampling, choosing = (
        torch.Generator().manual_seed(stable_seed("ceiling", asked.seed, purpose))
        for purpose in ("sampling", "prompts")
    )
    standardise_rewards(policy, subject, loaded)
    each = min(EACH, asked.images // FOLDS)
    chosen = draw_prompts(subject.prompts, choosing, asked.images // each * each, each)
    encoders = [critic_encoder(reward, subject.suite)[0] for reward in loaded.values()]
    scores: dict[str, list[Tensor]] = {name: [] for name in loaded}
    features: dict[str, list[Tensor]] = {name: [] for name in loaded}
    embeddings = []
    for start in range(0, len(chosen), policy.micro_batch):
        own = chosen[start : start + policy.micro_batch]
        chain = policy.rollout(own, sampling)
        with torch.no_grad():
            found = latent_features(policy, chain.latents[:, :-1], policy.micro_batch, *encoders)  # the steps' inputs
            scored = all_scores(loaded, chain.images, own, policy.world)
            context = policy.encode(own)
        pooled = context.added["text_embeds"] if context.added else context.embeds.mean(1)
        embeddings.append(pooled.float().cpu())
        for name, seen in zip(loaded, found, strict=True):
            features[name].append(seen.cpu())
            scores[name].append(scored[name].float().cpu())
    return Chains(
        chosen, {name: torch.cat(parts) for name, parts in scores.items()},
        {name: torch.cat(parts) for name, parts in features.items()}, torch.cat(embeddings),
    )  # fmt: skip


def standardise_rewards(policy: DiffusionPolicy, subject: Subject, loaded: Mapping[str, Reward]) -> None:
    """Standardise the rewards that need it: as the run did, or on images of the base model as a new run would."""
    from overopt_bench.evaluation.evaluator import Evaluator
    from overopt_bench.training.calibration import calibrate

    if not any(reward.needs_base_samples for reward in loaded.values()):
        return
    suite, config = subject.suite, subject.config
    prompts, seed = (subject.prompts, 0) if config is None else (config.training_prompts(suite), config.eval_seed)
    evaluator = Evaluator.of_policy(policy, suite, loaded, prompts, images=0, eval_seed=seed)
    if subject.run is None:
        calibrate(loaded.values(), {}, evaluator, policy.world, lambda row: None)
    else:
        restore_calibration(loaded.values(), subject.run, evaluator.base_samples)


def within_prompts(scores: Tensor, groups: Tensor) -> Tensor:
    """Normalise scores ``[N]`` by mean and deviation of their own prompt, as algorithms do; 0 where it has no deviation."""
    from overopt_bench.compute.moments import standardise

    returns = torch.empty_like(scores)
    for k in groups.unique():
        returns[groups == k] = standardise(scores[groups == k])
    return returns
