"""A diffusers pipeline with a LoRA adapter, seen as a Markov chain of Gaussian transitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Generator, Tensor, nn

from overopt_bench.compute.processes import World
from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.adapter import LORA_TARGETS, finite, read_lora, write_lora
from overopt_bench.diffusion.chains import Link, collect, walk
from overopt_bench.diffusion.decoder import Decoder, refuse_infinite
from overopt_bench.diffusion.network import Network, add_adapter
from overopt_bench.diffusion.pipelines import cast, configs_of, latent_side, refuse_unsupported
from overopt_bench.diffusion.prompts import Conditioning, PromptEncoder
from overopt_bench.diffusion.schedule import make_schedule
from overopt_bench.errors import UserError
from overopt_bench.types.policy import Trajectory
from overopt_bench.types.schedule import Prediction, Schedule
from overopt_bench.types.transition import Transition

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MICRO_BATCH = 128  # samples per pass where nobody says otherwise


class DiffusionPolicy:
    """Stable Diffusion's U-Net with LoRA; sampler DDIM with eta > 0 (DDPO, section 4.1), or a schedule that is given.

    Base weights are frozen; the adapter is float32 and starts at zero effect. Guidance is inside both sampling
    and ``transition``: a mismatch would make the first PPO ratio differ from 1. Latents, transitions and
    log-probabilities are float32 whatever the precision of the passes.

    Args:
        pipeline: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``; see ``pipelines`` for which.
        num_steps: T.
        guidance_scale: w in eps = eps_u + w (eps_c - eps_u); 1 uses the prompt alone.
        eta: stochasticity, in (0, 1].
        lora_rank: of the adapter.
        lora_alpha: of the adapter, whose scale is alpha / rank.
        seed: of the adapter's initial weights.
        precision: of the U-Net, the text encoders and the VAE (XL's VAE overflows in float16 and stays float32).
        runtime: device, micro-batch, compilation, attention.
        world: the processes that share the sampling.
        schedule: the sampler's mathematics on the runtime's device; None is DDIM on the checkpoint's betas, with
            ``num_steps`` and ``eta``, which a schedule that is given has itself.

    Raises:
        UserError: for another kind of pipeline, a number of steps that its schedule does not have, or an attention
            backend that cannot be used.
    """

    def __init__(
        self, pipeline: Any, *, num_steps: int, guidance_scale: float, eta: float, lora_rank: int, lora_alpha: int,
        seed: int, precision: str = "float32", runtime: Runtime | None = None, world: World | None = None,
        schedule: Schedule | None = None,
    ) -> None:  # fmt: skip
        runtime = runtime or Runtime()
        refuse_unsupported(type(pipeline).__name__, configs_of(pipeline), own_schedule=schedule is not None)
        self.schedule = schedule or make_schedule(pipeline.scheduler.config, num_steps, eta, runtime.device)
        self.timesteps, self.num_steps = self.schedule.timesteps, len(self.schedule.timesteps)
        self.device, self.world = torch.device(runtime.device), world or World(device=runtime.device)
        self.dtype = PRECISIONS[precision]
        self.micro_batch = runtime.micro_batch or MICRO_BATCH
        self.pipeline = pipeline.to(self.device)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        size = latent_side(self.unet.config)
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.encode = PromptEncoder(pipeline, self.device, size * pipeline.vae_scale_factor)
        vae_dtype = torch.float32 if self.encode.is_xl and self.dtype == torch.float16 else self.dtype
        self._decoder = Decoder(self.vae, vae_dtype)
        for module in (self.unet, self.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)):
            if module is not None:
                module.requires_grad_(False).eval()
                cast(module, vae_dtype if module is self.vae else self.dtype)
        self.unet.to(memory_format=torch.channels_last)
        self.guidance_scale, self.lora_rank, self.lora_alpha = guidance_scale, lora_rank, lora_alpha
        add_adapter(self.unet, rank=lora_rank, alpha=lora_alpha, seed=seed)
        self.network = Network(
            self.unet, self.encode, guidance_scale=guidance_scale, dtype=self.dtype, runtime=runtime, world=self.world
        )
        self.copies = self.network.copies

    @property
    def nfe(self) -> int:
        """U-Net evaluations so far, those of the base model and of copies included."""
        return self.network.nfe

    @nfe.setter
    def nfe(self, value: int) -> None:
        self.network.nfe = value

    def trainable(self) -> list[nn.Parameter]:
        """The adapter's parameters, float32."""
        return list(self.copies.current)

    def base(self) -> AbstractContextManager[None]:
        """Inside: the adapter is off; see ``types.Policy``."""
        return self.copies.wearing(None)

    def keep(self, name: str) -> None:
        """Keep a frozen copy of the adapter as it is now; see ``types.Policy``."""
        self.copies.keep(name)

    def using(self, name: str) -> AbstractContextManager[None]:
        """Inside: the policy is the copy of that name; see ``types.Policy``."""
        return self.copies.wearing(self.copies[name])

    def blend(self, name: str, decay: float) -> None:
        """Move a copy towards the adapter as it is now; see ``types.Policy``."""
        self.copies.blend(name, decay)

    def predict(
        self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str], *, checkpoint: bool = False
    ) -> Prediction:
        """Say what latents are made of at any training timesteps; see ``types.Policy``."""
        output = self.network(latents, timesteps.to(self.device), self.network.condition(prompts), blocks=checkpoint)
        return self.schedule.predict(latents.float(), output, timesteps)

    def add_noise(self, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Re-noise clean latents to training timesteps; see ``types.Policy``."""
        signal, level = self.schedule.levels(timesteps)
        return signal * clean + level * noise

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False,
        *, eta: Tensor | None = None,
    ) -> Transition:  # fmt: skip
        """Give p(x_{i+1} | x_i, prompt) under the current weights; see ``types.Policy``."""
        return self._transition(latents, steps, self.network.condition(prompts), eta, blocks=checkpoint)

    def _transition(
        self, x: Tensor, steps: Tensor, context: Conditioning, eta: Tensor | None, **recompute: bool
    ) -> Transition:
        output = self.network(x, self.timesteps[steps], context, **recompute)
        return self.schedule.transition(x.float(), output, steps, eta)

    def transition_vjp(self, latents: Tensor, steps: Tensor, prompts: Sequence[str], vector: Tensor) -> Tensor:
        """Compute (d mean / d x)^T v of a transition; see ``types.Policy``. Its passes have the policy's precision."""
        products = []
        for rows in torch.arange(len(latents)).split(self.micro_batch):
            x = latents[rows].detach().float().requires_grad_()
            with torch.enable_grad():
                mean = self.transition(x, steps[rows], [prompts[k] for k in rows.tolist()]).mean
                products.append(torch.autograd.grad(mean, x, vector[rows].to(mean))[0])
        return torch.cat(products)

    @torch.no_grad()
    def try_once(self) -> None:
        """Take one step and decode it, so that a base model which cannot be run is known before anything is written.

        Raises:
            UserError: where its parts do not fit each other, or give something that is not finite.
        """
        nfe, forward = self.nfe, self.network.forward
        self.network.forward = self.unet  # a compiled one would be compiled for this one shape first
        x = torch.randn((1, *self.latent_shape), generator=Generator().manual_seed(0)).to(self.device)
        try:
            image = self.decode(self.transition(x, torch.zeros(1, dtype=torch.long, device=self.device), [""]).mean)
        except torch.cuda.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the base model does not run, its parts do not fit each other: {error}") from None
        finally:
            self.nfe, self.network.forward = nfe, forward
        if not bool(image.isfinite().all()):
            advice = "; try --precision float32" if self.dtype != torch.float32 else ", its weights are damaged"
            raise UserError(f"the base model draws an image that is not finite{advice}")

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        """Noise of n chains ``[T+1, n, C, h, w]`` on the CPU, the same for micro-batches of any size; see ``types.Policy``."""
        return torch.randn((n, self.num_steps + 1, *self.latent_shape), generator=generator).transpose(0, 1)

    def rollout(
        self, prompts: Sequence[str], generator: Generator, *, eta: Tensor | None = None, with_kl: bool = False,
        with_means: bool = False,
    ) -> Trajectory:  # fmt: skip
        """Draw one image per prompt from the generator's noise; see ``types.Policy``."""
        noise = self.draw_noise(len(prompts), generator)
        return self.sample(noise, prompts, eta=eta, with_kl=with_kl, with_means=with_means)[0]

    @torch.no_grad()
    def sample(
        self, noise: Tensor, prompts: Sequence[str], *, with_kl: bool = False, eta: Tensor | None = None,
        with_means: bool = False,
    ) -> tuple[Trajectory, Tensor | None]:  # fmt: skip
        """Draw chains from given noise without a graph, in micro-batches, shared among processes.

        Args:
            noise: ``[T+1, B, C, h, w]``.
            prompts: B prompts.
            with_kl: also give ``kl``, at the price of a pass of the base model a step.
            eta: ``[T]`` noise of each step, in place of the schedule's own.
            with_means: also give ``means``.

        Returns:
            The trajectory and its ``kl``, if asked: E over on-policy trajectories of its sum is the exact path KL.

        Raises:
            FloatingPointError: for images that are not finite, which not every reward notices.
        """

        def work(rows: Tensor) -> tuple[Tensor, ...]:
            own = [prompts[k] for k in rows.tolist()]
            t = self._chains(noise[:, rows].to(self.device), own, with_kl=with_kl, eta=eta, with_means=with_means)
            return tuple(kept for kept in (t.latents, t.log_probs, t.images, t.kl, t.means) if kept is not None)

        latents, log_probs, images, *more = self.world.map(work, len(prompts), self.micro_batch)
        refuse_infinite(images)
        kl = more[0] if with_kl else None
        means = more[-1] if with_means else None
        return Trajectory(tuple(prompts), latents, self.timesteps, log_probs, images, kl, means), kl

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int, checkpoint: bool = False, with_kl: bool = False
    ) -> Trajectory:
        """Draw chains from given noise with a graph; see ``types.Policy``."""
        if checkpoint:
            self.vae.enable_gradient_checkpointing()
        return self._chains(noise.to(self.device), prompts, grad_from=grad_from, checkpoint=checkpoint, with_kl=with_kl)

    def _chains(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int | None = None, checkpoint: bool = False,
        with_kl: bool = False, eta: Tensor | None = None, with_means: bool = False,
    ) -> Trajectory:  # fmt: skip
        links = self.walk(noise, prompts, grad_from=grad_from, checkpoint=checkpoint, with_kl=with_kl, eta=eta)
        drawn = collect(noise[0], links, with_means=with_means)
        with torch.set_grad_enabled(grad_from is not None):
            images = self.decode(drawn.last)
        kept = drawn.latents, self.timesteps, drawn.log_probs, images, drawn.kl, drawn.means
        return Trajectory(tuple(prompts), *kept)

    def walk(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int | None = None, checkpoint: bool = False,
        with_kl: bool = False, eta: Tensor | None = None, start: Transition | None = None,
    ) -> Iterator[Link]:  # fmt: skip
        """Sample chains in one pass from noise on the device, a step at a time; see ``chains.walk``."""
        context = self.network.condition(prompts)  # prompts are encoded once, not every step
        # one pass at a time is held; XL's holds more than decoding does, so that its blocks are computed again as well
        again = {"whole": checkpoint, "blocks": checkpoint and self.encode.is_xl}
        return walk(
            noise, (self.schedule.eta if eta is None else eta).tolist(),
            lambda x, steps: self._transition(x, steps, context, eta, **again), self.base,
            grad_from=grad_from, with_kl=with_kl, start=start,
        )  # fmt: skip

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1], float32; differentiable."""
        return self._decoder(latents)

    def adapter_state(self) -> dict[str, Tensor]:
        """The adapter's weights by peft's names; the tensors are the parameters' own memory.

        Raises:
            FloatingPointError: where one is not finite, so that no such state is ever saved.
        """
        with self.copies.wearing(self.copies.current):
            return finite(dict(get_peft_model_state_dict(self.unet)))

    def state_dict(self) -> dict[str, Tensor]:
        """The adapter's weights and its kept copies.

        Raises:
            FloatingPointError: where a weight of the adapter is not finite.
        """
        return {**self.adapter_state(), **self.copies.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the adapter's weights and its copies; a state without copies leaves none."""
        adapter = self.copies.load_state_dict(state)
        with self.copies.wearing(self.copies.current):
            set_peft_model_state_dict(self.unet, adapter)

    def save_adapter(self, folder: Path) -> None:
        """Write the LoRA, its alpha included, so that ``pipeline.load_lora_weights(folder)`` reads it.

        Raises:
            OSError: where it cannot be written. FloatingPointError: where a weight is not finite.
        """
        write_lora(folder, self.adapter_state(), rank=self.lora_rank, alpha=self.lora_alpha, targets=LORA_TARGETS)

    def load_adapter(self, folder: Path) -> None:
        """Read what ``save_adapter`` wrote for a policy of the same rank and alpha.

        Raises:
            UserError: where there is none, or it is damaged or of another shape.
            FloatingPointError: where a weight is not finite.
        """
        state, own = read_lora(folder), self.adapter_state()
        if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
            raise UserError(f"{folder} holds no adapter of rank {self.lora_rank} for this base model")
        self.load_state_dict(finite(state))
