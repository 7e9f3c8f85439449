"""The learned proxies: ratings and pairwise preferences of ``human``, few and noisy, and what is fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers import CLIPModel

from overopt_bench.encoders.mini import mini_features
from overopt_bench.rewards.human import Human
from overopt_bench.rewards.scorers import AestheticHead, CrossAttentionScorer, SimilarityScorer
from overopt_bench.suites.mini.recipe.data import EmojiSet, augment
from overopt_bench.suites.mini.recipe.samples import Sampler
from overopt_bench.suites.mini.recipe.settings import Settings
from overopt_bench.suites.mini.recipe.training import fit, generator_for, seeded


@dataclass(frozen=True)
class Rated:
    """Images ``[N, 3, 32, 32]`` with their prompts, token ids and what ``human`` truly thinks of them ``[N]``."""

    images: Tensor
    prompts: tuple[str, ...]
    ids: Tensor
    truth: Tensor


def rate(images: Tensor, prompts: list[str], human: Human, sampler: Sampler) -> Rated:
    """Let the judge see images ``[N, 3, 32, 32]``; the noise is added by who asks."""
    with torch.no_grad():
        truth = torch.cat([human(images[k : k + 256], prompts[k : k + 256]) for k in range(0, len(images), 256)])
    return Rated(images, tuple(prompts), sampler.tokens(prompts), truth)


def _prompts(data: EmojiSet, n: int, g: Generator, each: int = 1) -> list[str]:
    """N prompts: random names, every one ``each`` times in a row."""
    names = torch.randint(len(data.names), (-(-n // each),), generator=g).tolist()
    return [data.names[k] for k in names for _ in range(each)][:n]


def base_samples(s: Settings, data: EmojiSet, sampler: Sampler, human: Human, n: int, g: Generator) -> Rated:
    """N base samples at the settings that runs use, in groups of one prompt."""
    prompts = _prompts(data, n, g, s.rated_per_prompt)
    return rate(sampler(prompts, g, guidance=s.guidance_scale), prompts, human, sampler)


def train_aesthetic(
    s: Settings, data: EmojiSet, sampler: Sampler, human: Human, clip: CLIPModel, work: Path
) -> AestheticHead:
    """Ratings: human + noise, of base samples; several of one prompt, so that more than the prompt is learned."""
    g = generator_for(s.seed, "aesthetic labels")
    rated = base_samples(s, data, sampler, human, s.aesthetic_labels, g)
    ratings = rated.truth + s.rating_noise * torch.randn(rated.truth.shape, generator=g)
    ratings = (ratings - ratings.mean()) / ratings.std()
    with torch.no_grad():
        embeddings = mini_features(clip, rated.images)
    head = seeded(s.seed, "aesthetic", AestheticHead)
    assert isinstance(head, AestheticHead)
    head.mean.copy_(embeddings.mean(0))
    head.std.copy_(embeddings.std(0))

    def loss(model: nn.Module, g: Generator) -> Tensor:
        pick = torch.randint(len(ratings), (128,), generator=g)
        return F.mse_loss(model(embeddings[pick]), ratings[pick])

    fit("aesthetic", head, loss, work=work, seed=s.seed, steps=s.aesthetic_steps, lr=1e-3, weight_decay=0.3)
    return head


@dataclass(frozen=True)
class Pairs:
    """Pairs of rated images by index ``first``, ``second`` ``[P]`` and which the rater prefers ``[P]`` (1: the first)."""

    rated: Rated
    first: Tensor
    second: Tensor
    choice: Tensor


def pair_up(s: Settings, rated: Rated, count: int, g: Generator) -> Pairs:
    """Pairs of rated images, half of them of one prompt, each judged by how well it shows its own prompt.

    Each side is seen with its own noise, so close pairs are often judged the wrong way round. Pairs within a
    prompt teach what a policy can change; pairs across prompts keep scores comparable between them.
    """
    n, k = len(rated.truth), s.rated_per_prompt
    a, b = (torch.randint(n, (count,), generator=g) for _ in range(2))
    shift = torch.randint(1, k, (count,), generator=g)
    sibling = (a // k * k + (a + shift) % k).clamp(max=n - 1)  # another image of the same prompt
    b = torch.where(torch.rand(count, generator=g) < 0.5, sibling, b)
    noise = s.rating_noise * torch.randn((2, count), generator=g)
    choice = (rated.truth[a] + noise[0] > rated.truth[b] + noise[1]).float()
    return Pairs(rated, a, b, choice)


def mixed_samples(s: Settings, data: EmojiSet, sampler: Sampler, human: Human, n: int, g: Generator) -> Rated:
    """N images of different sources, as in HPSv2: base samples, other guidance, a worse U-Net, real drawings."""
    prompts = _prompts(data, n, g, s.rated_per_prompt)
    guidance = s.guidance_scale
    by_name = {name: (data.name == k).nonzero().flatten() for k, name in enumerate(data.names)}
    worse = sampler.worse(0.15, g)

    def real(names: list[str]) -> Tensor:
        pick = torch.stack([by_name[p][torch.randint(len(by_name[p]), (1,), generator=g)][0] for p in names])
        return augment(data.images[pick].float() / 255, g)

    sources: list[tuple[float, Callable[[list[str]], Tensor]]] = [
        (0.7, lambda p: sampler(p, g, guidance=guidance)),
        (0.8, lambda p: sampler(p, g, guidance=2 * guidance)),
        (0.9, lambda p: worse(p, g, guidance=guidance)),
        (1.0, real),
    ]
    images = torch.empty(n, 3, 32, 32)
    drawn = torch.rand(n, generator=g)  # the source is drawn image by image, so a prompt's images differ in it
    below = 0.0
    for share, source in sources:
        pick = ((drawn >= below) & (drawn < share)).nonzero().flatten()
        if len(pick):
            images[pick] = source([prompts[k] for k in pick.tolist()])
        below = share
    return rate(images, prompts, human, sampler)


def train_preference(
    s: Settings,
    name: str,
    scorer: type[CrossAttentionScorer] | type[SimilarityScorer],
    clip: CLIPModel,
    pairs: Pairs,
    work: Path,
) -> nn.Module:
    """Bradley-Terry on pairs; the text tower stays frozen."""
    model = seeded(s.seed, name, lambda: scorer(clip))
    clip.requires_grad_(False)
    for module in (clip.vision_model, clip.visual_projection):
        module.requires_grad_(True)

    def loss(m: nn.Module, g: Generator) -> Tensor:
        pick = torch.randint(len(pairs.choice), (s.preference_batch,), generator=g)
        flip = torch.rand(len(pick), generator=g) < 0.5
        both = torch.cat([pairs.first[pick], pairs.second[pick]])
        images = pairs.rated.images[both]
        images = torch.where(torch.cat([flip, flip]).view(-1, 1, 1, 1), images.flip(3), images)
        a, b = m(images, pairs.rated.ids[both]).chunk(2)
        return F.binary_cross_entropy_with_logits(a - b, pairs.choice[pick])

    fit(name, model, loss, work=work, seed=s.seed, steps=s.preference_steps, lr=4e-4, weight_decay=0.1)
    return model
