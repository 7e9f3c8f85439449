"""Training of ``human`` and of the independent classifier that measures recognisability."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from overopt_bench.rewards.judge import Judge, Member, NamingNet
from overopt_bench.suites.mini.recipe.data import EmojiSet, augment
from overopt_bench.suites.mini.recipe.generator import encode_latents
from overopt_bench.suites.mini.recipe.samples import CORRUPTIONS, Sampler, corrupt
from overopt_bench.suites.mini.recipe.settings import Settings
from overopt_bench.suites.mini.recipe.training import fit, generator_for, seeded

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# How well drawn each kind of image is held to be, before any corruption. Generated images start well below
# real ones, which is the headroom that a policy can climb.
QUALITY = {"real": 1.0, "reconstructed": 0.95, "base": 0.5, "oversaturated": 0.3}


@dataclass(frozen=True)
class Pool:
    """Generated images ``[N, 3, 32, 32]`` uint8 with their name ``[N]`` (-1: no naming loss) and quality ``[N]``."""

    images: Tensor
    name: Tensor
    quality: Tensor


def make_pool(s: Settings, data: EmojiSet, sampler: Sampler, work: Path) -> Pool:
    """Generated images of known kinds: guidance scales, SDEdit by how much is kept, perturbed U-Nets."""
    path, guidance = work / "pool.pt", s.judge_guidance
    if path.exists():
        return Pool(**torch.load(path, weights_only=True))
    g = generator_for(s.seed, "judge pool")
    images, names, quality = [], [], []

    def add(batch: Tensor, name: Tensor, q: float, teach_name: bool) -> None:
        images.append((batch * 255).round().to(torch.uint8))
        names.append(name if teach_name else torch.full_like(name, -1))
        quality.append(torch.full((len(batch),), q))

    def draw(n: int) -> tuple[Tensor, list[str]]:
        ids = torch.randint(len(data.names), (n,), generator=g)
        return ids, [data.names[k] for k in ids.tolist()]

    n = s.pool_size
    for scale, q in (
        (guidance, QUALITY["base"]),
        (1.0, 0.45),
        (2.0, QUALITY["base"]),
        (3.0, 0.45),
        (6.0, QUALITY["oversaturated"]),
    ):
        ids, prompts = draw(2 * n if scale == guidance else n)
        add(sampler(prompts, g, guidance=scale), ids, q, teach_name=False)
    for start in (3, 5, 6, 7, 8):  # of 10 steps: the later the start, the more of the real drawing is kept
        pick = torch.randint(len(data.images), (n,), generator=g)
        latents = encode_latents(sampler.pipe.vae, augment(data.images[pick].float() / 255, g), g)
        prompts = [data.names[k] for k in data.name[pick].tolist()]
        batch = sampler(prompts, g, guidance=guidance, init=latents, start=start)
        add(batch, data.name[pick], 0.5 + 0.45 * (start - 2) / 7, teach_name=start >= 6)
    for sigma, q in ((0.1, 0.4), (0.2, 0.3), (0.4, 0.15), (0.8, 0.0)):
        ids, prompts = draw(n)
        add(sampler.worse(sigma, g)(prompts, g, guidance=guidance), ids, q, teach_name=False)
    pool = Pool(torch.cat(images), torch.cat(names), torch.cat(quality))
    torch.save(vars(pool), path)
    return pool


def _judge_batch(
    data: EmojiSet, drawings: Tensor, pool: Pool, vae: AutoencoderKL, size: int, g: Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, target name, weight of the naming loss and quality for one step of one judge."""
    half = size // 2
    pick = drawings[torch.randint(len(drawings), (half,), generator=g)]
    real = augment(data.images[pick].float() / 255, g)
    again = torch.arange(half) < max(1, int(0.4 * half))
    with torch.no_grad():
        z = vae.encode(real[again] * 2 - 1).latent_dist.mean
        real[again] = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    q_real = torch.where(again, QUALITY["reconstructed"], QUALITY["real"])
    other = torch.randint(len(pool.images), (size - half,), generator=g)
    generated = pool.images[other].float() / 255
    flip = torch.rand(len(generated), generator=g) < 0.5
    generated[flip] = generated[flip].flip(3)
    images = torch.cat([real, generated])
    name = torch.cat([data.name[pick], pool.name[other]])
    quality = torch.cat([q_real, pool.quality[other]])
    severity = torch.rand(size, generator=g) * (torch.rand(size, generator=g) < 0.5)
    kinds = torch.randint(len(CORRUPTIONS), (size,), generator=g)
    for k, kind in enumerate(CORRUPTIONS):
        chosen = (kinds == k) & (severity > 0)
        if chosen.any():
            images[chosen] = corrupt(images[chosen], severity[chosen], kind, g)
    blank = torch.rand(size, generator=g) < 0.03
    images[blank] = torch.rand((int(blank.sum()), 3, 1, 1), generator=g).expand(-1, -1, 32, 32)
    static = torch.rand(size, generator=g) < 0.03
    images[static] = torch.rand((int(static.sum()), 3, 32, 32), generator=g)
    lost = blank | static | (severity > 0.85)
    nothing = len(data.names)
    weight = ((name >= 0) | lost).float()
    name = torch.where(lost, nothing, name.clamp(min=0))
    quality = torch.where(blank | static, 0.0, quality * (1 - severity))
    return images, name, weight, quality


def train_judge(s: Settings, data: EmojiSet, pool: Pool, vae: AutoencoderKL, work: Path) -> Judge:
    """Three members, each on its own 85 % of the drawings and its own 70 % of the pool."""
    judge = Judge(data.names, s.judge_width)
    for m in range(Judge.MEMBERS):
        g = generator_for(s.seed, f"judge split {m}")
        drawings = torch.randperm(len(data.images), generator=g)[: int(0.85 * len(data.images))]
        part = torch.randperm(len(pool.images), generator=g)[: int(0.7 * len(pool.images))]
        own = Pool(pool.images[part], pool.name[part], pool.quality[part])
        member = seeded(s.seed, f"judge {m}", lambda: Member(len(data.names) + 1, s.judge_width))
        assert isinstance(member, Member)

        def naming(model: nn.Module, g: Generator, drawings: Tensor = drawings, own: Pool = own) -> Tensor:
            images, name, weight, _ = _judge_batch(data, drawings, own, vae, s.judge_batch, g)
            loss = F.cross_entropy(_with_dropout(model, images, g), name, reduction="none", label_smoothing=0.05)
            return (loss * weight).sum() / weight.sum()

        def quality(model: nn.Module, g: Generator, drawings: Tensor = drawings, own: Pool = own) -> Tensor:
            images, _, _, target = _judge_batch(data, drawings, own, vae, s.judge_batch, g)
            return F.binary_cross_entropy_with_logits(
                model(images.contiguous(memory_format=torch.channels_last)), target
            )

        member.to(memory_format=torch.channels_last)
        fit(f"judge{m}-naming", member.name, naming, work=work, seed=s.seed, steps=s.judge_steps, lr=3e-3)
        fit(f"judge{m}-quality", member.quality, quality, work=work, seed=s.seed, steps=s.judge_steps, lr=3e-3)
        judge.members[m] = member.to(memory_format=torch.contiguous_format)
    return judge.eval().requires_grad_(False)


def _with_dropout(model: nn.Module, images: Tensor, g: Generator) -> Tensor:
    """A training pass whose dropout is drawn from the given generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=g)))
        return torch.as_tensor(model(images.contiguous(memory_format=torch.channels_last)))


def train_classifier(s: Settings, data: EmojiSet, work: Path) -> NamingNet:
    """Names drawings; sees augmented real images only and is used for nothing but the card's recognisability."""
    net = seeded(s.seed + 1, "classifier", lambda: NamingNet(len(data.names), s.judge_width))
    assert isinstance(net, NamingNet)
    net.to(memory_format=torch.channels_last)

    def loss(model: nn.Module, g: Generator) -> Tensor:
        pick = torch.randint(len(data.images), (s.judge_batch,), generator=g)
        x = augment(data.images[pick].float() / 255, g, 1.3)
        x = x + 0.08 * torch.rand(len(x), 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
        soft = _soften(x, g)
        logits = _with_dropout(model, soft, g)
        return F.cross_entropy(logits, data.name[pick], label_smoothing=0.05)

    fit("classifier", net, loss, work=work, seed=s.seed + 1, steps=s.classifier_steps, lr=3e-3)
    return net


def _soften(x: Tensor, g: Generator) -> Tensor:
    """A light random blur: an autoencoder's softness is no reason to fail to recognise a drawing."""
    return corrupt(x, 0.3 * torch.rand(len(x), generator=g), "blur", g)
