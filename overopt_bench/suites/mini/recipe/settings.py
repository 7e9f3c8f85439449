"""Every number of the recipe in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes, steps and seeds. ``miniature()`` is the same recipe small enough for a test.

    The proxies' label counts, noise and the judge are fixed by Spearman, by the judge's ordering and by
    DDPO alone; see the model card for the date and the reasons.
    """

    seed: int = 0
    names: int | None = None
    vae_steps: int = 2600
    vae_batch: int = 24
    clip_steps: int = 900
    clip_batch: int = 96
    unet_steps: int = 5500
    unet_batch: int = 64
    unet_blocks: tuple[int, int] = (64, 96)
    latent_copies: int = 12
    guidance_scale: float = 1.0  # of runs, and so of the images that raters see
    judge_guidance: float = 1.5
    num_steps: int = 5
    pool_size: int = 256
    pool_steps: int = 10  # the judge's pool keeps more or less of a real drawing in tenths
    judge_steps: int = 1500
    judge_batch: int = 64
    judge_width: int = 32
    classifier_steps: int = 1200
    aesthetic_labels: int = 4096
    aesthetic_steps: int = 1500
    rated_images: int = 8192
    rated_per_prompt: int = 8
    imagereward_pairs: int = 16000
    pickscore_pairs: int = 8000
    hpsv2_pairs: int = 8000
    preference_steps: int = 600
    preference_batch: int = 64
    rating_noise: float = 0.02
    spearman_samples: int = 1024
    split_size: int = 16

    @classmethod
    def miniature(cls) -> Settings:
        """A few steps of everything, for the end-to-end test."""
        return cls(
            names=8,
            vae_steps=4,
            vae_batch=4,
            clip_steps=4,
            clip_batch=8,
            unet_steps=4,
            unet_batch=4,
            unet_blocks=(16, 32),
            latent_copies=1,
            pool_size=4,
            judge_steps=3,
            judge_batch=8,
            judge_width=8,
            classifier_steps=3,
            aesthetic_labels=12,
            aesthetic_steps=4,
            rated_images=12,
            rated_per_prompt=3,
            imagereward_pairs=8,
            pickscore_pairs=8,
            hpsv2_pairs=8,
            preference_steps=3,
            preference_batch=4,
            spearman_samples=16,
        )
