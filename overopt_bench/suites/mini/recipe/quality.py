"""What the card publishes: recognisability, the judge's ordering, and each proxy's Spearman correlation with it."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Generator, Tensor

from overopt_bench.rewards.human import Human
from overopt_bench.rewards.judge import NamingNet
from overopt_bench.suites.mini.recipe.data import EmojiSet, augment
from overopt_bench.suites.mini.recipe.generator import psnr
from overopt_bench.suites.mini.recipe.samples import Sampler, corrupt
from overopt_bench.suites.mini.recipe.settings import Settings
from overopt_bench.suites.mini.recipe.training import generator_for
from overopt_bench.types import Reward


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor) -> Tensor:
    """Images ``[N, 3, 32, 32]`` through the autoencoder and back, in [0, 1]."""
    parts = [vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample for x in images.split(128)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def top_k(net: NamingNet, images: Tensor, names: Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy of the independent classifier; n images."""
    ranks = torch.cat([net(x) for x in images.split(256)]).topk(min(5, net.naming.out_features), 1).indices
    hit = ranks == names[:, None]
    return {"top1": hit[:, 0].float().mean().item(), "top5": hit.any(1).float().mean().item(), "n": len(images)}


def recognisability(s: Settings, data: EmojiSet, net: NamingNet, sampler: Sampler, per_name: int = 4) -> dict[str, Any]:
    """The classifier on real images (fresh augmentations), reconstructions and base samples of every animal."""
    g = generator_for(s.seed, "recognisability")
    animals = torch.tensor([k for k, animal in enumerate(data.is_animal) if animal])
    pick = torch.isin(data.name, animals).nonzero().flatten()
    real = augment(data.images[pick].float() / 255, g)
    again = reconstruct(sampler.pipe.vae, real)
    out: dict[str, Any] = {
        "real": top_k(net, real, data.name[pick]),
        "reconstructed": top_k(net, again, data.name[pick]),
        "psnr_db": {"mean": psnr(real, again).mean().item(), "p10": psnr(real, again).quantile(0.1).item()},
    }
    ids = animals.repeat(per_name)
    prompts = [data.names[k] for k in ids.tolist()]
    for scale in sorted({1.0, s.guidance_scale, 3.0, 5.0}):
        out[f"base samples, guidance {scale:g}"] = top_k(net, sampler(prompts, g, guidance=scale), ids)
    return out


def judge_ordering(s: Settings, data: EmojiSet, sampler: Sampler, human: Human, n: int) -> dict[str, dict[str, float]]:
    """The judge's mean score, with alignment and quality, on images whose order is known beforehand."""
    g = generator_for(s.seed, "judge ordering")
    pick = torch.randint(len(data.images), (n,), generator=g)
    prompts = [data.names[k] for k in data.name[pick].tolist()]
    swapped = [
        data.names[(k + 1 + int(torch.randint(len(data.names) - 1, (1,), generator=g))) % len(data.names)]
        for k in data.name[pick].tolist()
    ]
    real = augment(data.images[pick].float() / 255, g)
    base = sampler(prompts, g, guidance=s.guidance_scale)
    table: dict[str, tuple[Tensor, list[str]]] = {
        "real": (real, prompts),
        "reconstructed": (reconstruct(sampler.pipe.vae, real), prompts),
        "base samples": (base, prompts),
        "base samples, guidance 5": (sampler(prompts, g, guidance=5.0), prompts),
        "perturbed U-Net 0.2": (sampler.worse(0.2, g)(prompts, g, guidance=s.guidance_scale), prompts),
        "perturbed U-Net 0.5": (sampler.worse(0.5, g)(prompts, g, guidance=s.guidance_scale), prompts),
        "real, swapped prompts": (real, swapped),
        "base samples, swapped prompts": (base, swapped),
        "white": (torch.ones_like(real), prompts),
        "texture": (corrupt(torch.full_like(real, 0.5), torch.ones(n), "waves", g), prompts),
        "collapse (one drawing for all)": (real[:1].expand_as(real), prompts),
        "pure noise": (torch.rand(real.shape, generator=g), prompts),
    }
    for kind in ("noise", "blur", "tint", "warp", "tiles", "waves"):
        for word, severity in (("mild", 0.25), ("strong", 0.75)):
            table[f"real, {word} {kind}"] = (corrupt(real, torch.full((n,), severity), kind, g), prompts)
    out = {}
    for row, (images, own_prompts) in table.items():
        with torch.no_grad():
            a, q = human.judge.parts(images, own_prompts)
        score = (a + q) / 2
        out[row] = {"score": score.mean().item(), "stderr": (score.std() / n**0.5).item(),
                    "alignment": a.mean().item(), "quality": q.mean().item()}  # fmt: skip
    return out


def correlations(
    s: Settings, data: EmojiSet, sampler: Sampler, human: Human, proxies: dict[str, Reward]
) -> dict[str, dict[str, float]]:
    """Correlations with ``human`` on fresh base samples, 16 of a random name each, and the proxies' mean and spread.

    ``spearman`` is over all images, ``within`` Pearson's after each prompt's mean is taken away: what a policy
    that is trained per prompt can use.
    """
    g: Generator = generator_for(s.seed, "spearman")
    n, each = s.spearman_samples, 16
    names = torch.randint(len(data.names), (n // each,), generator=g).tolist()
    prompts = [data.names[k] for k in names for _ in range(each)]
    images = sampler(prompts, g, guidance=s.guidance_scale)

    def score(reward: Reward) -> Tensor:
        with torch.no_grad():
            return torch.cat([reward(images[k : k + 256], prompts[k : k + 256]) for k in range(0, n, 256)])

    def deviations(x: Tensor) -> Tensor:
        return (x.view(-1, each) - x.view(-1, each).mean(1, keepdim=True)).flatten()

    truth = score(human)
    out = {"human": {"mean": truth.mean().item(), "std": truth.std().item(), "n": n,
                     "std_within": deviations(truth).std().item()}}  # fmt: skip
    for name, proxy in proxies.items():
        x = score(proxy)
        both = torch.stack([deviations(x), deviations(truth)])
        out[name] = {"spearman": float(spearmanr(x.numpy(), truth.numpy()).statistic),
                     "within": torch.corrcoef(both)[0, 1].item(),
                     "mean": x.mean().item(), "std": x.std().item(), "n": n}  # fmt: skip
    return out


def save_grid(images: Tensor, columns: int, path: Any, zoom: int = 2) -> None:
    """Images ``[N, 3, H, W]`` in [0, 1] as one PNG, row by row, each pixel ``zoom`` wide."""
    n, _, h, w = images.shape
    rows = n // columns
    grid = (
        images[: rows * columns]
        .reshape(rows, columns, 3, h, w)
        .permute(0, 3, 1, 4, 2)
        .reshape(rows * h, columns * w, 3)
    )
    picture = Image.fromarray((grid * 255).round().to(torch.uint8).numpy())
    picture.resize((columns * w * zoom, rows * h * zoom), Image.Resampling.NEAREST).save(path)
