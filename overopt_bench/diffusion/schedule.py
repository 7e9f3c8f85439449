"""A checkpoint's noise schedule: the timesteps of a chain, and the Gaussian of each of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, get_args

from overopt_bench.diffusion.ddim import PredictionType, clean_and_noise, ddim_transition
from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.types.schedule import Prediction
from overopt_bench.types.transition import Transition

if TYPE_CHECKING:
    from diffusers import DDIMScheduler
    from torch import Tensor

# what is the checkpoint's, also where only the class of its scheduler or of its pipeline says it
OWN = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type", "steps_offset",
)  # fmt: skip


@dataclass(frozen=True)
class DDIMSchedule:
    """T steps of DDIM with noise (DDPO, section 4.1), from noise to image; a ``types.Schedule``.

    Attributes:
        timesteps: ``[T]`` int64, strictly decreasing, the last at least 1; what the network is told.
        alphas: ``[N]`` float32, alphas_cumprod of every training timestep.
        prediction: what the network's output is.
        eta: ``[T]`` float64 on the CPU, in [0, 1], the stochasticity of each step.
    """

    timesteps: Tensor
    alphas: Tensor
    prediction: PredictionType
    eta: Tensor

    @property
    def num_train_timesteps(self) -> int:
        """N, the number of training timesteps."""
        return len(self.alphas)

    @cached_property
    def alpha(self) -> Tensor:
        """``[T]``, alphas_cumprod at each step's input."""
        return self.alphas[self.timesteps]

    @cached_property
    def alpha_prev(self) -> Tensor:
        """``[T]``, alphas_cumprod at each step's output: the list's next timestep, after the last one timestep 0.

        There it is not 1 (``set_alpha_to_one=False``), for the last step would then have no noise.
        """
        return self.alphas[torch.cat([self.timesteps[1:], torch.zeros_like(self.timesteps[:1])])]

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Give sqrt(alpha) and sqrt(1 - alpha) of any training timesteps; see ``types.Schedule``."""
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def predict(self, x: Tensor, output: Tensor, timesteps: Tensor) -> Prediction:
        """Say what latents are made of, given the network's guided output for them; see ``types.Schedule``."""
        return clean_and_noise(x, output, self.alphas[timesteps], self.prediction)

    def transition(self, x: Tensor, output: Tensor, steps: Tensor, eta: Tensor | None = None) -> Transition:
        """Give p(x_{i+1} | x_i), given the network's guided output at each sample's own step; see ``types.Schedule``."""
        eta = self.eta if eta is None else self._checked(eta)
        # known from the CPU alone where it can be, so that no step waits for a GPU
        noisy = bool((eta > 0).all()) or (bool((eta[steps] > 0).all()) if steps.device.type == "cpu" else None)
        own_eta = eta.to(self.alpha.device, non_blocking=True)[steps]
        return ddim_transition(x, output, self.alpha[steps], self.alpha_prev[steps], own_eta, self.prediction, noisy)

    def _checked(self, eta: Tensor) -> Tensor:
        if eta.shape != self.eta.shape or not bool(((eta >= 0) & (eta <= 1)).all()):
            raise ValueError(f"eta must be {len(self.eta)} numbers in [0, 1], one a step, not {eta.tolist()}")
        return eta.to("cpu", torch.float64)


def prediction_of(scheduler: Mapping[str, Any]) -> PredictionType:
    """What the network of a checkpoint predicts, by its scheduler's configuration.

    Raises:
        UserError: for something else than noise, image or velocity.
    """
    found = scheduler.get("prediction_type", "epsilon")
    for kind in get_args(PredictionType):
        if kind == found:
            return cast(PredictionType, kind)
    raise UserError(f"the checkpoint predicts {found!r}; allowed are {', '.join(get_args(PredictionType))}")


def make_schedule(
    scheduler: dict[str, Any], num_steps: int, eta: float, device: str | torch.device = "cpu"
) -> DDIMSchedule:
    """Make the schedule of ``num_steps`` steps for a checkpoint.

    Betas, prediction and spacing are the checkpoint's, whatever sampler it names; x_0 is never clipped. A list that
    ends in timestep 0 (``linspace``, and ``leading`` with offset 0) ends in 1 instead: a step from 0 has no noise.

    Args:
        scheduler: the configuration of the checkpoint's scheduler, as diffusers' ``scheduler.config`` has it.
        num_steps: T.
        eta: the noise of every step, in (0, 1].
        device: where its tensors are held.

    Raises:
        UserError: where the checkpoint's timesteps are too few for so many steps, its betas are no schedule, or its
            network predicts noise where the schedule has nothing but noise.
    """
    from diffusers import DDIMScheduler

    prediction = prediction_of(scheduler)
    own = {name: scheduler[name] for name in OWN if name in scheduler}
    try:
        ddim = DDIMScheduler.from_config(scheduler, **own, clip_sample=False, set_alpha_to_one=False)
        total = int(ddim.config.num_train_timesteps)
        timesteps = _timesteps(ddim, num_steps)
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the checkpoint's scheduler_config.json gives no schedule: {error}") from None
    alphas = ddim.alphas_cumprod
    if (
        len(alphas) != total
        or not bool(((alphas[1:] < alphas[:-1]) & (alphas[1:] >= 0)).all())
        or not 0 < alphas[0] < 1
    ):
        raise UserError(
            f"the checkpoint's betas are no schedule of {total} timesteps: each must be in (0, 1], one a timestep"
        )
    if timesteps is None:
        allowed = [n for n in range(2, total + 1) if _timesteps(ddim, n) is not None]
        near = max((n for n in allowed if n < num_steps), default=min(allowed, default=None))
        raise UserError(
            f"--num-steps {num_steps} does not fit the checkpoint's {total} timesteps ({ddim.config.timestep_spacing}"
            f" spacing, offset {ddim.config.steps_offset}); the nearest that does is {near}"
        )
    if prediction == "epsilon" and alphas[timesteps[0]] == 0:
        raise UserError(
            "the checkpoint predicts epsilon, from which no image follows at its first timestep, where there is noise alone"
            " (rescale_betas_zero_snr); it needs prediction_type v_prediction or sample, or timestep_spacing leading"
        )
    own_eta = torch.full((num_steps,), eta, dtype=torch.float64)
    return DDIMSchedule(timesteps.to(device), alphas.to(device), prediction, own_eta)


def _timesteps(ddim: DDIMScheduler, num_steps: int) -> Tensor | None:
    """``[T]`` int64, strictly decreasing in 1..N-1; None where there is no such list."""
    total = int(ddim.config.num_train_timesteps)
    if num_steps > total:
        return None
    ddim.set_timesteps(num_steps)
    # some "trailing" lists of diffusers have a last entry of -1 too many, by rounding in np.arange
    timesteps = ddim.timesteps[:num_steps].clamp(min=1)
    fits = timesteps[0] < total and bool((timesteps[1:] < timesteps[:-1]).all())
    return timesteps if fits else None
