"""What is known of a sampler at one point of the budget: every metric's numbers, on fixed prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from overopt_bench.compute.processes import World
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.encoders.shared import Shared
from overopt_bench.errors import UserError
from overopt_bench.evaluation.measuring import load_metrics, measure
from overopt_bench.evaluation.sampler import PolicySampler, Sampler
from overopt_bench.evaluation.scoring import all_scores
from overopt_bench.evaluation.splits import Split, evaluation_prompts, make_split
from overopt_bench.prompts.tidy import overlap
from overopt_bench.seeding import stable_seed
from overopt_bench.types import Evaluation, Reward, Suite

COLUMNS = 16
CALIBRATION_IMAGES = 128
# splits that the report reads between start and end, the training prompts and the first held-out ones; the path KL, which
# costs as much as the images themselves, is measured on these alone
FOLLOWED = 2


@torch.no_grad()
def evaluate_split(
    sampler: Sampler, split: Split, rewards: Mapping[str, Reward], encoder: Callable[[Tensor], Tensor],
    *, with_kl: bool = False, world: World | None = None,
) -> Evaluation:  # fmt: skip
    """Draw the images of one split and ask the rewards about them.

    Args:
        sampler: what draws.
        split: which prompts and noise.
        rewards: all that are asked, by name.
        encoder: the suite's CLIP, images ``[B, 3, H, W]`` to unit features ``[B, D]``; called where a metric asks.
        with_kl: measure the KL of each step to the base model, where the sampler can.
        world: the processes that share the scoring; this one alone where None.

    Raises:
        FloatingPointError: where an image or a score is not finite.
    """
    world = world or World()
    images, kl = sampler.draw(split.noise, split.prompts, with_kl=with_kl and sampler.lacks_kl is None)
    scores = all_scores(rewards, images, split.prompts, world)
    return Evaluation(split.name, split.prompts, images, scores, kl, encoder)


class Evaluator:
    """Evaluates one sampler, always on the same prompts and noise.

    The first split gets ``images`` images, each other one half as many, so that evaluation stays a small part of a
    run. Path KL is measured on the first two; the others are looked at where the whole is asked for.

    Args:
        sampler: a policy, or anything else that draws images from noise.
        rewards: all that are asked, by name.
        encoder: the suite's CLIP, images ``[B, 3, H, W]`` to unit features ``[B, D]``.
        prompts: by split; the first split is that of the training.
        images: how many of the first split.
        eval_seed: of the noise.
        base: draws the base model's images, on which some rewards are standardised; None where nobody asks for it.
        world: the processes that share the scoring; this one alone where None.

    Raises:
        UserError: where a metric cannot be made.
    """

    def __init__(
        self, sampler: Sampler, rewards: Mapping[str, Reward], encoder: Callable[[Tensor], Tensor],
        prompts: Mapping[str, Sequence[str]], *, images: int, eval_seed: int = 0, base: Sampler | None = None,
        world: World | None = None,
    ) -> None:  # fmt: skip
        self.sampler, self.rewards, self.encoder = sampler, rewards, encoder
        self.base, self.world, self.eval_seed = base, world or World(), eval_seed
        self.metrics, self.shared = load_metrics(), Shared()
        first, *others = prompts.items()
        self.train_prompts = first[1]
        planned = [(*first, images), *((name, listed, images // 2) for name, listed in others)]
        self.splits = [make_split(name, listed, n, eval_seed, sampler.noise_shape) for name, listed, n in planned if n]
        # held-out prompts that are trained on are recorded as such: their scores are of no unseen prompts
        self.trained_on = {
            split.name: overlap(self.train_prompts, dict.fromkeys(split.prompts)) for split in self.splits[1:]
        }

    @classmethod
    def of_policy(
        cls, policy: DiffusionPolicy, suite: Suite, rewards: Mapping[str, Reward], training_prompts: Sequence[str],
        *, images: int, eval_seed: int,
    ) -> Evaluator:  # fmt: skip
        """Make the evaluator of a policy on a suite: on its training prompts, and on all that the suite holds out."""
        return cls(
            PolicySampler(policy), rewards, suite.clip_features, evaluation_prompts(suite, training_prompts),
            images=images, eval_seed=eval_seed, base=PolicySampler(policy, base=True), world=policy.world,
        )  # fmt: skip

    @property
    def lacks(self) -> tuple[str, ...]:
        """What the sampler cannot give, a sentence each; empty where it gives everything."""
        return () if self.sampler.lacks_kl is None else (f"no path KL: {self.sampler.lacks_kl}",)

    def base_samples(self, count: int = CALIBRATION_IMAGES) -> tuple[Tensor, tuple[str, ...]]:
        """Draw ``count`` images ``[count, 3, H, W]`` of the base model over all training prompts; give them and their prompts.

        Rewards are standardised on them. Their noise is that of no evaluation, and the same whenever they are drawn.

        Raises:
            UserError: where there is no base model to draw with.
        """
        if self.base is None:
            raise UserError("a reward is standardised on images of the base model, and this sampler has none")
        seed = stable_seed("calibration", self.eval_seed)
        split = make_split("calibration", self.train_prompts, count, seed, self.base.noise_shape, 1)
        return self.base.draw(split.noise, split.prompts, with_kl=False).images, split.prompts

    @torch.no_grad()
    def __call__(self, *, whole: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]], Tensor]:
        """Evaluate every split, or those alone that are followed from start to end.

        Args:
            whole: take the other splits too, which no figure or table reads between start and end.

        Returns:
            The "eval" row, the "scores" rows (one a split), and all images ``[N, 3, H, W]`` in row order.

        Raises:
            FloatingPointError: where a reward or a metric gives something that is not finite.
        """
        row: dict[str, Any] = {}
        details: list[dict[str, Any]] = []
        pictures: list[Tensor] = []
        for number, split in enumerate(self.splits if whole else self.splits[:FOLLOWED]):
            with self.shared.batch():
                seen = evaluate_split(
                    self.sampler, split, self.rewards, self.encoder, with_kl=number < FOLLOWED, world=self.world
                )
                row |= measure(seen, self.metrics)
            details.append({
                "split": split.name, "prompts": split.prompts, "index": split.index,
                **({"trained_on": repeated} if (repeated := self.trained_on.get(split.name)) else {}),
                "scores": {name: [round(v, 6) for v in values.tolist()] for name, values in seen.scores.items()},
                "path_kl": None if seen.kl is None else [round(v, 6) for v in seen.kl.sum(1).tolist()],
                # of each denoising step, the mean over images
                "kl_by_step": None if seen.kl is None else [round(v, 6) for v in seen.kl.mean(0).tolist()],
                "first_cell": sum(len(p) for p in pictures), "columns": COLUMNS, "cell": seen.images.shape[-1],
            })  # fmt: skip
            pictures.append(seen.images.cpu())
        return row, details, torch.cat(pictures)
