"""A diffusers pipeline with a LoRA adapter, seen as a Markov chain of Gaussian transitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from overopt_bench.errors import UserError
from overopt_bench.transition import Transition, ddim_transition
from overopt_bench.types import Trajectory

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # every attention of the U-Net, as in trl's DDPO


class DiffusionPolicy:
    """Stable Diffusion's U-Net with LoRA; sampler DDIM with eta > 0 (DDPO, section 4.1).

    Base weights are frozen; the adapter is float32 and starts at zero effect. Guidance is inside both sampling
    and ``transition``: a mismatch would make the first PPO ratio differ from 1.

    Args:
        pipeline: a ``StableDiffusionPipeline`` whose U-Net predicts noise.
        num_steps: T. guidance_scale: w in eps = eps_u + w (eps_c - eps_u); 1 uses the prompt alone.
        eta: stochasticity, in (0, 1]. seed: of the adapter's initial weights.

    Raises:
        UserError: for a pipeline that is not an epsilon-prediction Stable Diffusion.
    """

    def __init__(
        self, pipeline: Any, *, num_steps: int, guidance_scale: float, eta: float, lora_rank: int, lora_alpha: int,
        device: str | torch.device, seed: int,
    ) -> None:  # fmt: skip
        if getattr(pipeline.scheduler.config, "prediction_type", None) != "epsilon":
            raise UserError(
                f"the policy needs an epsilon-prediction pipeline, got {pipeline.scheduler.config.get('prediction_type')!r}"
            )
        self.device = torch.device(device)
        self.pipeline = pipeline.to(self.device)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        for module in (self.unet, self.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval()
        self.unet.to(memory_format=torch.channels_last)
        self.num_steps, self.guidance_scale, self.eta = num_steps, guidance_scale, eta
        size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.nfe = 0
        self._add_adapter(lora_rank, lora_alpha, seed)
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False, set_alpha_to_one=False)
        scheduler.set_timesteps(num_steps)
        self.timesteps = scheduler.timesteps.to(self.device)
        before = (self.timesteps - scheduler.config.num_train_timesteps // num_steps).clamp(min=0)
        alphas = scheduler.alphas_cumprod.to(self.device)
        self._alpha, self._alpha_prev = alphas[self.timesteps], alphas[before]
        self._embeds: dict[str, Tensor] = {}

    def _add_adapter(self, rank: int, alpha: int, seed: int) -> None:
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.unet.add_adapter(config)
        for p in self.trainable():
            p.data = p.data.float()

    def trainable(self) -> list[nn.Parameter]:
        """The adapter's parameters, float32."""
        return [p for p in self.unet.parameters() if p.requires_grad]

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside: the adapter is off."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings ``[B, L, D]``, computed once per prompt."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._embeds]
        if new:
            tokenizer = self.pipeline.tokenizer
            ids = tokenizer(
                new, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
            ).input_ids
            hidden = self.pipeline.text_encoder(ids.to(self.device)).last_hidden_state
            self._embeds.update(zip(new, hidden, strict=True))
        return torch.stack([self._embeds[p] for p in prompts])

    def guided_eps(self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False) -> Tensor:
        """The guided noise prediction ``[B, C, h, w]`` for x_i ``[B, C, h, w]`` at each sample's own step ``[B]``."""
        t, w = self.timesteps[steps], self.guidance_scale
        context = self.encode(prompts)
        if w != 1:  # one pass of 2 B: [unconditional, conditional]
            latents, t = torch.cat([latents, latents]), torch.cat([t, t])
            context = torch.cat([self.encode([""]).expand_as(context), context])
        self.nfe += len(latents)
        latents = latents.to(memory_format=torch.channels_last)
        if checkpoint and torch.is_grad_enabled():
            eps = recompute(self._unet, latents, t, context, use_reentrant=False)
        else:
            eps = self._unet(latents, t, context)
        if w == 1:
            return torch.as_tensor(eps)
        eps_u, eps_c = eps.chunk(2)
        return torch.as_tensor(eps_u + w * (eps_c - eps_u))

    def _unet(self, latents: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return torch.as_tensor(self.unet(latents, t, context, return_dict=False)[0])

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False
    ) -> Transition:
        """p(x_{i+1} | x_i, prompt) under the current weights; see ``types.Policy``."""
        eps = self.guided_eps(latents, steps, prompts, checkpoint)
        return ddim_transition(latents.float(), eps.float(), self._alpha[steps], self._alpha_prev[steps], self.eta)

    def rollout(
        self, prompts: Sequence[str], generator: Generator, *, grad_from: int | None = None, checkpoint: bool = False
    ) -> Trajectory:
        """Draw one image per prompt from the generator's noise; see ``types.Policy``."""
        # image by image, so that micro-batches of any size draw the same noise
        noise = torch.randn((len(prompts), self.num_steps + 1, *self.latent_shape), generator=generator)
        return self.rollout_from(
            noise.transpose(0, 1).to(self.device), prompts, grad_from=grad_from, checkpoint=checkpoint
        )[0]

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int | None = None, checkpoint: bool = False,
        with_kl: bool = False,
    ) -> tuple[Trajectory, Tensor | None]:  # fmt: skip
        """A rollout from given noise ``[T+1, B, C, h, w]``: the initial latent, then one draw per step.

        Returns:
            The trajectory and, where asked, the KL to the base model of each step ``[B, T]`` in nats
            (E over on-policy trajectories of its sum is the exact path KL).
        """
        x = noise[0]
        latents, log_probs, kl = [x], [], []
        for i in range(self.num_steps):
            steps = torch.full((len(prompts),), i, device=self.device)
            with torch.set_grad_enabled(grad_from is not None and i >= grad_from):
                step = self.transition(x, steps, prompts, checkpoint)
                x_next = step.sample(noise[i + 1])
            with torch.no_grad():
                log_probs.append(step.log_prob(x_next))
                if with_kl:
                    with self.base():
                        kl.append(step.kl(self.transition(x, steps, prompts)))
            x = x_next
            latents.append(x.detach())
        with torch.set_grad_enabled(grad_from is not None):
            images = self.decode(x)
        trajectory = Trajectory(
            tuple(prompts), torch.stack(latents, 1), self.timesteps, torch.stack(log_probs, 1), images
        )
        return trajectory, torch.stack(kl, 1) if with_kl else None

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1]; differentiable."""
        latents = (latents / self.vae.config.scaling_factor).to(memory_format=torch.channels_last)
        return torch.as_tensor((self.vae.decode(latents, return_dict=False)[0] / 2 + 0.5).clamp(0, 1))

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's weights."""
        return dict(get_peft_model_state_dict(self.unet))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the adapter's weights."""
        set_peft_model_state_dict(self.unet, state)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA in the format that ``pipeline.load_lora_weights(folder)`` reads."""
        from diffusers.utils import convert_state_dict_to_diffusers

        layers = convert_state_dict_to_diffusers(self.state_dict())
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
