"""A checkpoint's noise schedule: the timesteps of a chain, and the Gaussian of each of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from overopt_bench.diffusion.ddim import Prediction, clean_and_noise, ddim_transition
from overopt_bench.errors import UserError
from overopt_bench.types.transition import Transition

# what is the checkpoint's, also where only the class of its scheduler or of its pipeline says it
OWN = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type", "steps_offset",
)  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """T steps of DDIM with noise (DDPO, section 4.1), from noise to image.

    Attributes:
        timesteps: ``[T]`` int64, strictly decreasing, the last at least 1; what the network is told.
        alpha: ``[T]`` float32, alphas_cumprod at each timestep. alpha_prev: ``[T]``, at the list's next timestep, after
            the last one at timestep 0 (``set_alpha_to_one=False``: at 1 the last step would have no noise).
        prediction: what the network's output is. eta: stochasticity, in (0, 1].
    """

    timesteps: Tensor
    alpha: Tensor
    alpha_prev: Tensor
    prediction: Prediction
    eta: float

    def clean_and_noise(self, x: Tensor, output: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and eps, ``[B, C, h, w]`` each, given the network's guided output at x of each sample's own step ``[B]``."""
        return clean_and_noise(x, output, self.alpha[steps], self.prediction)

    def transition(self, x: Tensor, output: Tensor, steps: Tensor) -> Transition:
        """p(x_{i+1} | x_i), given the network's guided output at x ``[B, C, h, w]`` of each sample's own step ``[B]``."""
        return ddim_transition(x, output, self.alpha[steps], self.alpha_prev[steps], self.eta, self.prediction)


def prediction_of(scheduler: Mapping[str, Any]) -> Prediction:
    """What the network of a checkpoint predicts, by its scheduler's configuration.

    Raises:
        UserError: for something else than noise, image or velocity.
    """
    found = scheduler.get("prediction_type", "epsilon")
    for kind in get_args(Prediction):
        if kind == found:
            return cast(Prediction, kind)
    raise UserError(f"the checkpoint predicts {found!r}; allowed are {', '.join(get_args(Prediction))}")


def make_schedule(
    scheduler: dict[str, Any], num_steps: int, eta: float, device: str | torch.device = "cpu"
) -> Schedule:
    """The schedule of ``num_steps`` steps for a checkpoint.

    Betas, prediction and spacing are the checkpoint's, whatever sampler it names; x_0 is never clipped. A list that
    ends in timestep 0 (``linspace``, and ``leading`` with offset 0) ends in 1 instead: a step from 0 has no noise.

    Args:
        scheduler: the configuration of the checkpoint's scheduler, as diffusers' ``scheduler.config`` has it.

    Raises:
        UserError: where the checkpoint's timesteps are too few for so many steps, its betas are no schedule, or its
            network predicts noise where the schedule has nothing but noise.
    """
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
    alpha, alpha_prev = alphas[timesteps], alphas[torch.cat([timesteps[1:], torch.zeros_like(timesteps[:1])])]
    if prediction == "epsilon" and alpha[0] == 0:
        raise UserError(
            "the checkpoint predicts epsilon, from which no image follows at its first timestep, where there is noise alone"
            " (rescale_betas_zero_snr); it needs prediction_type v_prediction or sample, or timestep_spacing leading"
        )
    return Schedule(timesteps.to(device), alpha.to(device), alpha_prev.to(device), prediction, eta)


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
