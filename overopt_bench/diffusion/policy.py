"""A diffusers pipeline with a LoRA adapter, seen as a Markov chain of Gaussian transitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from overopt_bench.compute.processes import World
from overopt_bench.compute.runtime import ATTENTION, Runtime
from overopt_bench.diffusion.adapter import finite, read_lora, write_lora
from overopt_bench.diffusion.pipelines import cast, configs_of, latent_side, refuse_unsupported
from overopt_bench.diffusion.prompts import Conditioning, PromptEncoder
from overopt_bench.diffusion.schedule import make_schedule
from overopt_bench.errors import UserError
from overopt_bench.types import Trajectory
from overopt_bench.types.transition import Transition

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # every attention of the U-Net, as in trl's DDPO
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MICRO_BATCH = 128  # samples per pass where nobody says otherwise


class DiffusionPolicy:
    """Stable Diffusion's U-Net with LoRA; sampler DDIM with eta > 0 (DDPO, section 4.1).

    Base weights are frozen; the adapter is float32 and starts at zero effect. Guidance is inside both sampling
    and ``transition``: a mismatch would make the first PPO ratio differ from 1. Latents, transitions and
    log-probabilities are float32 whatever the precision of the passes.

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``; see ``pipelines`` for which.
        num_steps: T. guidance_scale: w in eps = eps_u + w (eps_c - eps_u); 1 uses the prompt alone.
        eta: stochasticity, in (0, 1]. seed: of the adapter's initial weights.
        precision: of the U-Net, the text encoders and the VAE (XL's VAE overflows in float16 and stays float32).
        runtime: device, micro-batch, compilation, attention. world: the processes that share the sampling.

    Raises:
        UserError: for another kind of pipeline, a number of steps that its schedule does not have, or an attention
            backend that cannot be used.
    """

    def __init__(
        self, pipeline: Any, *, num_steps: int, guidance_scale: float, eta: float, lora_rank: int, lora_alpha: int,
        seed: int, precision: str = "float32", runtime: Runtime | None = None, world: World | None = None,
    ) -> None:  # fmt: skip
        runtime = runtime or Runtime()
        refuse_unsupported(type(pipeline).__name__, configs_of(pipeline))
        self.schedule = make_schedule(pipeline.scheduler.config, num_steps, eta, runtime.device)
        self.timesteps = self.schedule.timesteps
        self.device, self.world = torch.device(runtime.device), world or World(device=runtime.device)
        self.dtype = PRECISIONS[precision]
        self.micro_batch = runtime.micro_batch or MICRO_BATCH
        self.pipeline = pipeline.to(self.device)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        size = latent_side(self.unet.config)
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.encode = PromptEncoder(pipeline, self.device, size * pipeline.vae_scale_factor)
        self.vae_dtype = torch.float32 if self.encode.is_xl and self.dtype == torch.float16 else self.dtype
        for module in (self.unet, self.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if module is not None:
                module.requires_grad_(False).eval()
                cast(module, self.vae_dtype if module is self.vae else self.dtype)
        self.unet.to(memory_format=torch.channels_last)
        self.num_steps, self.guidance_scale = num_steps, guidance_scale
        self.lora_rank, self.lora_alpha = lora_rank, lora_alpha
        self.nfe = 0
        self._add_adapter(seed)
        _set_attention(self.unet, runtime.attention)
        self._unet_forward: Any = torch.compile(self.unet) if runtime.compile else self.unet

    def _add_adapter(self, seed: int) -> None:
        config = LoraConfig(
            r=self.lora_rank, lora_alpha=self.lora_alpha, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS)
        )  # fmt: skip
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

    def guided_output(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], recomputed: bool = False
    ) -> Tensor:  # fmt: skip
        """The U-Net's guided output ``[B, C, h, w]`` float32 for x_i ``[B, C, h, w]`` at each sample's own step ``[B]``.

        ``schedule.prediction`` says what it is: noise, velocity or image. Guidance is the same for all three, for
        at one x they are linear in each other.

        Args:
            recomputed: keep only the inputs of the whole pass for the backward pass.
        """
        self.world.check_stop()
        t, w = self.timesteps[steps], self.guidance_scale
        context = self.encode(prompts)
        x = latents
        if w != 1:  # one pass of 2 B: [unconditional, conditional]
            x, t = torch.cat([x, x]), torch.cat([t, t])
            context = Conditioning.cat([self.encode.unconditional(len(latents)), context])
        self.nfe += len(x)
        x = x.to(memory_format=torch.channels_last)
        if recomputed and torch.is_grad_enabled():
            out = recompute(self._unet, x, t, context, use_reentrant=False)
        else:
            out = self._unet(x, t, context)
        if w != 1:
            unconditional, conditional = out.chunk(2)
            out = unconditional + w * (conditional - unconditional)
        return torch.as_tensor(out)

    def _unet(self, x: Tensor, t: Tensor, context: Conditioning) -> Tensor:
        with self._autocast():
            out = self._unet_forward(x, t, context.embeds, added_cond_kwargs=context.added, return_dict=False)[0]
        return torch.as_tensor(out.float())

    def _autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False
    ) -> Transition:
        """p(x_{i+1} | x_i, prompt) under the current weights; see ``types.Policy``."""
        if checkpoint:
            self.unet.enable_gradient_checkpointing()  # block by block; acts only where there is a graph
        return self.schedule.transition(latents.float(), self.guided_output(latents, steps, prompts), steps)

    @torch.no_grad()
    def try_once(self) -> None:
        """Take one step and decode it, so that a base model which cannot be run is known before anything is written.

        Raises:
            UserError: where its parts do not fit each other, or give something that is not finite.
        """
        nfe, forward = self.nfe, self._unet_forward
        self._unet_forward = self.unet  # a compiled one would be compiled for this one shape first
        x = torch.randn((1, *self.latent_shape), generator=Generator().manual_seed(0)).to(self.device)
        try:
            image = self.decode(self.transition(x, torch.zeros(1, dtype=torch.long, device=self.device), [""]).mean)
        except torch.cuda.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the base model does not run, its parts do not fit each other: {error}") from None
        finally:
            self.nfe, self._unet_forward = nfe, forward
        if not bool(image.isfinite().all()):
            advice = "; try --precision float32" if self.dtype != torch.float32 else ", its weights are damaged"
            raise UserError(f"the base model draws an image that is not finite{advice}")

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        """Noise of n chains ``[T+1, n, C, h, w]`` on the CPU; see ``types.Policy``."""
        # chain by chain, so that micro-batches of any size draw the same noise
        return torch.randn((n, self.num_steps + 1, *self.latent_shape), generator=generator).transpose(0, 1)

    def rollout(self, prompts: Sequence[str], generator: Generator) -> Trajectory:
        """Draw one image per prompt from the generator's noise; see ``types.Policy``."""
        return self.sample(self.draw_noise(len(prompts), generator), prompts)[0]

    @torch.no_grad()
    def sample(
        self, noise: Tensor, prompts: Sequence[str], *, with_kl: bool = False
    ) -> tuple[Trajectory, Tensor | None]:
        """Chains from given noise ``[T+1, B, C, h, w]`` without a graph, in micro-batches, shared among processes.

        Returns:
            The trajectory and, where asked, the KL to the base model of each step ``[B, T]`` in nats
            (E over on-policy trajectories of its sum is the exact path KL).

        Raises:
            FloatingPointError: for images that are not finite, which not every reward notices.
        """

        def work(rows: Tensor) -> tuple[Tensor, ...]:
            words = [prompts[k] for k in rows.tolist()]
            t, kl = self._chains(noise[:, rows].to(self.device), words, with_kl=with_kl)
            return (t.latents, t.log_probs, t.images, *([] if kl is None else [kl]))

        latents, log_probs, images, *kl = self.world.map(work, len(prompts), self.micro_batch)
        if not bool((good := images.isfinite().flatten(1).all(1)).all()):
            raise FloatingPointError(f"{int((~good).sum())} of {len(good)} images that the policy drew are not finite")
        return Trajectory(tuple(prompts), latents, self.timesteps, log_probs, images), kl[0] if with_kl else None

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int, checkpoint: bool = False
    ) -> Trajectory:
        """Chains from given noise ``[T+1, B, C, h, w]`` with a graph; see ``types.Policy``."""
        if checkpoint:
            self.unet.enable_gradient_checkpointing(), self.vae.enable_gradient_checkpointing()
        return self._chains(noise.to(self.device), prompts, grad_from=grad_from, recomputed=checkpoint)[0]

    def _chains(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int | None = None, recomputed: bool = False,
        with_kl: bool = False,
    ) -> tuple[Trajectory, Tensor | None]:  # fmt: skip
        x = noise[0]
        latents, log_probs, kl = [x], [], []
        for i in range(self.num_steps):
            steps = torch.full((len(prompts),), i, device=self.device)
            with torch.set_grad_enabled(grad_from is not None and i >= grad_from):
                step = self.schedule.transition(x, self.guided_output(x, steps, prompts, recomputed), steps)
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
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1], float32; differentiable."""
        latents = self._unscale(latents).to(self.vae_dtype, memory_format=torch.channels_last)
        return torch.as_tensor((self.vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1))

    def _unscale(self, latents: Tensor) -> Tensor:
        """From the U-Net's scale to the VAE's, as diffusers' pipelines do."""
        config = self.vae.config
        moments, scale = (config.get("latents_mean"), config.get("latents_std")), float(config.scaling_factor)
        if None in moments:
            return latents / scale
        mean, std = (torch.tensor(values, device=latents.device).view(1, -1, 1, 1) for values in moments)  # per channel
        return latents * std / scale + mean

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's weights.

        Raises:
            FloatingPointError: where one is not finite, so that no such state is ever saved.
        """
        return finite(dict(get_peft_model_state_dict(self.unet)))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the adapter's weights."""
        set_peft_model_state_dict(self.unet, state)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA, its alpha included, so that ``pipeline.load_lora_weights(folder)`` reads it.

        Raises:
            OSError: where it cannot be written. FloatingPointError: where a weight is not finite.
        """
        write_lora(folder, self.state_dict(), rank=self.lora_rank, alpha=self.lora_alpha, targets=LORA_TARGETS)

    def load_adapter(self, folder: Path) -> None:
        """Read what ``save_adapter`` wrote for a policy of the same rank and alpha.

        Raises:
            UserError: where there is none, or it is damaged or of another shape.
            FloatingPointError: where a weight is not finite.
        """
        state, own = read_lora(folder), self.state_dict()
        if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
            raise UserError(f"{folder} holds no adapter of rank {self.lora_rank} for this base model")
        self.load_state_dict(finite(state))


def _set_attention(unet: Any, kind: str | None) -> None:
    """The implementation of attention; U-Nets of diffusers take a processor, not one of its dispatched backends.

    Raises:
        UserError: where its package is missing.
    """
    from diffusers.models import attention_processor

    if kind is None:
        return
    if kind == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ModuleNotFoundError, ValueError) as error:
            raise UserError(f"--attention xformers: {error}") from None
    else:
        unet.set_attn_processor(getattr(attention_processor, ATTENTION[kind])())
