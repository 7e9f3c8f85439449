"""What a temporal critic could explain of a proxy's returns in a suite, before anything is trained there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from overopt_bench.commands.requests import Questions
from overopt_bench.commands.settings import parse_names
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import check_split, resolve_params
from overopt_bench.errors import RunError, UserError
from overopt_bench.evaluation.ceiling import Ceiling
from overopt_bench.lazy import torch
from overopt_bench.plugins import probe_foreign_rewards
from overopt_bench.registry import algorithms, get_reward, rewards
from overopt_bench.seeding import stable_seed

if TYPE_CHECKING:
    from torch import Tensor

    from overopt_bench.diffusion.policy import DiffusionPolicy
    from overopt_bench.types import Reward, Suite

EACH = 16  # images of a prompt, as many as make its mean and deviation known
FOLDS = 5  # of chains or prompts; each needs a prompt, and a prompt two images, for its returns to differ


def check(asked: Questions, suite: Suite) -> list[str]:
    """Return the proxies' names, or refuse what cannot be asked; loads no weights.

    Raises:
        UserError: for an unknown proxy or split, prompts that a proxy cannot judge, too few prompts or images, or a file
            that cannot be written.
    """
    family = suite.family()
    proxies = list(dict.fromkeys(rewards.canonical(name, family) for name in parse_names("--proxy", asked.proxy)))
    check_split(type(suite), asked.train_split)
    prompts = suite.prompts[asked.train_split]
    if len(dict.fromkeys(prompts)) < FOLDS:
        raise UserError(
            f"the split {asked.train_split!r} of {suite.name} has {len(prompts)} prompts; at least {FOLDS} are needed, one for"
            " each fold of the cross-validation"
        )
    if asked.images < 2 * FOLDS:
        raise UserError(
            f"--images {asked.images} is too few: at least {2 * FOLDS} are needed, two of each of {FOLDS} prompts;"
            " numbers to rely on need about 1,000"
        )
    if asked.out is not None and asked.out.suffix not in (".json", ".csv"):
        raise UserError(f"--out {asked.out}: allowed are files that end in .json or .csv")
    if asked.out is not None and not asked.out.parent.is_dir():
        raise UserError(f"--out {asked.out}: there is no folder {asked.out.parent}; make it first")
    for name in proxies:
        if rewards.known() & {(family, name), (None, name)} or ":" in name:
            rewards.get(name, family).check_prompts(prompts, suite.resources)
    return proxies


def ask(asked: Questions, suite: Suite, proxies: Sequence[str], runtime: Runtime) -> Ceiling:
    """Draw chains of the base policy, score their images, and measure what critics explain of the returns.

    Args:
        asked: what the user wants to know, checked.
        suite: gives the base policy and the prompts.
        proxies: names of rewards.
        runtime: where and how fast.

    Raises:
        UserError: where weights are missing, or a proxy gives a prompt's images one score, for every prompt.
        RunError: where an image or a score is not finite.
    """
    from overopt_bench.evaluation.explaining import explain

    prompts = list(dict.fromkeys(suite.prompts[asked.train_split]))
    probe_foreign_rewards(proxies, suite, prompts)
    loaded = {name: get_reward(name, suite) for name in proxies}
    policy = base_policy(asked, suite, loaded, runtime)
    try:
        drawn = draw(policy, suite, loaded, prompts, asked)
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
    skipped = skipped_steps(suite) if asked.skip_last_steps is None else asked.skip_last_steps
    trained = max(1, policy.num_steps - skipped)
    rows = {
        name: tuple(explain(
            drawn.features[name].numpy(), values.double().numpy(), groups.numpy(), drawn.embeddings.numpy(),
            trained_steps=trained, folds=FOLDS, seed=asked.seed % 2**32,
        ))
        for name, values in returns.items()
    }  # fmt: skip
    return Ceiling(
        suite.name, asked.train_split, len(numbers), len(groups), asked.seed, policy.num_steps, trained, rows
    )


def base_policy(asked: Questions, suite: Suite, loaded: Mapping[str, Reward], runtime: Runtime) -> DiffusionPolicy:
    """Load the base model as a run of the suite would begin with it: a fresh adapter has no effect."""
    from overopt_bench.sizing import micro_batch
    from overopt_bench.training.build import build_policy

    changed: dict[str, Any] = {"num_steps": asked.num_steps or suite.defaults.num_steps}
    if runtime.device == "cpu":  # where half precision saves no time
        changed["precision"] = "float32"
    settings, pipeline = suite.defaults.model_copy(update=changed), suite.pipeline()
    fitting = runtime.micro_batch or micro_batch.choose_sampling(
        pipeline, settings.precision, loaded.values(), settings.guidance_scale != 1, runtime.device
    )
    policy = build_policy(suite, pipeline, settings, asked.seed, runtime.model_copy(update={"micro_batch": fitting}))
    policy.try_once()
    return policy


def skipped_steps(suite: Suite) -> int:
    """Give the most last steps that the suite lets any algorithm skip; 0 where none knows such a parameter."""
    known = [name for name in algorithms.names() if "skip_last_steps" in algorithms.get(name).Params.model_fields]
    return max((resolve_params(name, suite.name, {})["skip_last_steps"] for name in known), default=0)


@dataclass(frozen=True)
class Chains:
    """N chains on the CPU: scores ``[N]`` and step features ``[N, T, D]`` by proxy, and prompt embeddings ``[N, P]``."""

    prompts: list[str]
    scores: dict[str, Tensor]
    features: dict[str, Tensor]
    embeddings: Tensor


def draw(
    policy: DiffusionPolicy, suite: Suite, loaded: Mapping[str, Reward], prompts: Sequence[str], asked: Questions
) -> Chains:  # fmt: skip
    """Draw chains once for all proxies, and keep of them what a critic sees and what the proxies say."""
    from overopt_bench.encoders.latents import latent_features
    from overopt_bench.evaluation.evaluator import Evaluator
    from overopt_bench.evaluation.scoring import all_scores
    from overopt_bench.training.build import critic_encoder, draw_prompts
    from overopt_bench.training.calibration import calibrate

    sampling, choosing = (
        torch.Generator().manual_seed(stable_seed("ceiling", asked.seed, purpose))
        for purpose in ("sampling", "prompts")
    )
    if any(reward.needs_base_samples for reward in loaded.values()):
        evaluator = Evaluator.of_policy(policy, suite, loaded, prompts, images=1, eval_seed=0)
        calibrate(loaded.values(), {}, evaluator, policy.world, lambda row: None)
    each = min(EACH, asked.images // FOLDS)
    chosen = draw_prompts(prompts, choosing, asked.images // each * each, each)
    encoders = [critic_encoder(reward, suite)[0] for reward in loaded.values()]
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


def within_prompts(scores: Tensor, groups: Tensor) -> Tensor:
    """Normalise scores ``[N]`` by mean and deviation of their own prompt, as algorithms do; 0 where it has no deviation."""
    from overopt_bench.compute.moments import standardise

    returns = torch.empty_like(scores)
    for k in groups.unique():
        returns[groups == k] = standardise(scores[groups == k])
    return returns
