"""The schedule of a checkpoint: every spacing's own steps, worked by hand and against diffusers' DDIM where that is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler

from overopt_bench.diffusion.ddim import PredictionType, clean_and_noise
from overopt_bench.diffusion.schedule import DDIMSchedule, make_schedule
from overopt_bench.errors import UserError

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BY_HAND = {"trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4}  # alphas .9 .72 .504 .3024
SPACINGS = [(spacing, offset) for spacing in ("leading", "trailing", "linspace") for offset in (0, 1)]


def make(num_steps: int, eta: float = 1.0, **config: Any) -> DDIMSchedule:
    return make_schedule(DDIMScheduler(**{**SD, **config}).config, num_steps, eta)


def alphas(**config: Any) -> np.ndarray:
    """alphas_cumprod ``[1000]`` in float64, from the definition."""
    betas = np.linspace(SD["beta_start"] ** 0.5, SD["beta_end"] ** 0.5, 1000) ** 2
    return np.cumprod(1 - betas)


def stds(schedule: DDIMSchedule) -> torch.Tensor:
    """Of every step ``[T]``."""
    x = torch.zeros(len(schedule.timesteps), 1, 1, 1)
    return schedule.transition(x, x, torch.arange(len(x))).std.flatten()


def listed(spacing: str, offset: int, num_steps: int) -> np.ndarray:
    """Timesteps by Table 2 of Lin et al. (2023), 0-based, in sampling order; a 0 at the end is taken at 1."""
    if spacing == "leading":
        steps = np.arange(num_steps)[::-1] * (1000 // num_steps) + offset
    elif spacing == "trailing":
        steps = np.array([round(1000 * k / num_steps) - 1 for k in range(num_steps, 0, -1)])
    else:
        steps = np.linspace(0, 999, num_steps).round()[::-1]
    return np.maximum(steps, 1)


@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_each_step_goes_to_the_next_of_the_list(spacing: str, offset: int) -> None:
    """Also where T does not divide 1000, and where np.arange gives diffusers one entry too many (61, 103)."""
    truth = alphas()
    for num_steps in (2, 3, 7, 30, 50, 61, 103, 333, 499, 500):
        schedule = make(num_steps, timestep_spacing=spacing, steps_offset=offset)
        steps = listed(spacing, offset, num_steps)
        np.testing.assert_allclose(schedule.timesteps.numpy(), steps, atol=spacing == "trailing", rtol=0)  # halves
        steps = schedule.timesteps.numpy()
        before = np.append(steps[1:], 0)
        a, b = truth[steps], truth[before]
        np.testing.assert_allclose(stds(schedule), ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5, rtol=2e-3)
        assert steps[0] < 1000 and (before < steps).all()


@pytest.mark.parametrize(("spacing", "offset"), SPACINGS)
def test_any_number_of_steps_has_noise_in_each_or_is_refused(spacing: str, offset: int) -> None:
    largest = {"leading": 999 if offset else 500, "trailing": 799, "linspace": 667}[spacing]
    for num_steps in [*range(2, 60), 499, 500, 501, 600, 666, 667, 668, 799, 800, 999, 1000]:
        if num_steps > largest:
            message = f"--num-steps {num_steps} does not fit .*{spacing} spacing.*; the nearest that does is {largest}$"
            with pytest.raises(UserError, match=message):
                make(num_steps, timestep_spacing=spacing, steps_offset=offset)
            continue
        found = stds(make(num_steps, timestep_spacing=spacing, steps_offset=offset))
        assert found.shape == (num_steps,) and (found > 0.01).all() and torch.isfinite(found).all(), num_steps


@pytest.mark.parametrize(
    ("config", "num_steps", "timesteps", "variances"),
    [
        ({"timestep_spacing": "linspace"}, 3, [3, 2, 1], [0.2844037, 0.1693548, 0.0714286]),
        ({"timestep_spacing": "trailing"}, 2, [3, 1], [0.2327982, 0.0714286]),
        ({"timestep_spacing": "leading"}, 2, [2, 1], [0.1693548, 0.0714286]),
        ({"timestep_spacing": "leading", "steps_offset": 1}, 2, [3, 1], [0.2327982, 0.0714286]),
    ],
)
def test_small_schedules_worked_by_hand(
    config: dict[str, Any], num_steps: int, timesteps: list[int], variances: list[float]
) -> None:
    """With alphas .9 .72 .504 .3024: from 3 to 2 the variance is .496/.6976 (1 - .6), from 1 to 0 .1/.28 (1 - .8)."""
    schedule = make(num_steps, **BY_HAND, **config)
    assert schedule.timesteps.tolist() == timesteps
    assert (stds(schedule) ** 2).tolist() == pytest.approx(variances, abs=1e-6)
    assert (stds(make(num_steps, 0.5, **BY_HAND, **config)) ** 2).tolist() == pytest.approx(
        [v / 4 for v in variances], abs=1e-6
    )


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize(
    ("spacing", "offset", "num_steps"), [("leading", 1, 50), ("leading", 1, 7), ("trailing", 0, 50)]
)
def test_steps_are_those_of_diffusers(
    prediction: str, zero_snr: bool, spacing: str, offset: int, num_steps: int
) -> None:
    """On the spacings whose previous timestep diffusers knows: mean and noise, whatever the network predicts."""
    config = {
        **SD, "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr, "timestep_spacing": spacing,
        "steps_offset": offset, "clip_sample": False, "set_alpha_to_one": False,
    }  # fmt: skip
    if prediction == "epsilon" and zero_snr and spacing == "trailing":
        with pytest.raises(UserError, match="predicts epsilon, from which no image follows"):
            make(num_steps, **config)
        return
    eta = (
        0.9 if zero_snr else 1.0
    )  # at zero terminal SNR and eta 1 diffusers takes the root of a rounded 0 and gives NaN
    theirs, ours, g = DDIMScheduler(**config), make(num_steps, eta, **config), torch.Generator().manual_seed(0)
    theirs.set_timesteps(num_steps)
    assert torch.equal(theirs.timesteps, ours.timesteps)
    for i, t in enumerate(theirs.timesteps):
        x, out, noise = torch.randn(3, 1, 4, 8, 8, generator=g)
        expected = theirs.step(out, t, x, eta=eta, variance_noise=noise).prev_sample
        own = ours.transition(x, out, torch.tensor([i]))
        torch.testing.assert_close(own.sample(noise), expected, rtol=1e-4, atol=1e-4)
        assert own.std > 0


def test_zero_terminal_snr_begins_with_noise_alone() -> None:
    """alpha is 0 at the first step: x_0 is minus the velocity, and x says nothing about it."""
    for num_steps in [*range(2, 667, 5), 666]:
        schedule = make(
            num_steps, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        assert schedule.alpha[0] == 0 and schedule.timesteps[0] == 999
        x, v = torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 0.5)
        for i in (0, 1, num_steps - 1):
            step = schedule.transition(x, v, torch.tensor([i]))
            assert torch.isfinite(step.mean).all() and torch.isfinite(step.log_prob(x)).all() and step.std > 0
        first, later = schedule.transition(x, v, torch.tensor([0])), schedule.alpha_prev[0]
        assert first.mean.item() == pytest.approx(-0.5 * later.sqrt().item())
        assert first.std.item() == pytest.approx((1 - later).sqrt().item())


def test_what_the_network_says_of_an_image_by_hand() -> None:
    """x = 1 and alpha = 1/4: the output is 1/2 of noise, of image, of velocity."""
    x, out = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5)
    root = 0.75**0.5
    expected: dict[PredictionType, tuple[float, float]] = {
        "epsilon": ((1 - root / 2) / 0.5, 0.5), "sample": (0.5, 0.75 / root), "v_prediction": (0.5 - root / 2, root + 0.25)
    }  # fmt: skip
    for prediction, values in expected.items():
        made_of = clean_and_noise(x, out, torch.tensor([0.25]), prediction)
        found = [float(made_of.clean), float(made_of.noise)]
        assert found == pytest.approx(values, abs=1e-6), prediction
        assert 0.5 * found[0] + root * found[1] == pytest.approx(1)


def test_defaults_are_the_checkpoints_own_class() -> None:
    """What a scheduler's file leaves out is said by its class, and Heun's betas are not those of DDIM."""
    heun = HeunDiscreteScheduler.from_config({})
    assert "beta_start" in heun.config["_use_default_values"]
    torch.testing.assert_close(
        make_schedule(heun.config, 10, 1.0).alpha, heun.alphas_cumprod[[*range(900, 0, -100), 1]]
    )
    # the pipeline of Stable Diffusion 1 sets the offset on a configuration that has none
    euler = EulerDiscreteScheduler.from_config(SD)
    euler.register_to_config(steps_offset=1)
    assert make_schedule(euler.config, 10, 1.0).timesteps.tolist() == list(range(901, 0, -100))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "sigmoid"}, "gives no schedule: sigmoid is not implemented"),
        ({"trained_betas": [0.1, 0.2]}, "no schedule of 1000 timesteps"),
        ({"trained_betas": [0.1] * 999 + [1.5]}, "no schedule of 1000 timesteps"),
        ({"beta_start": 0.0, "beta_end": 0.0}, "no schedule of 1000 timesteps"),
        ({"timestep_spacing": "cosine"}, "gives no schedule: cosine is not supported"),
        (
            {"prediction_type": "flow_prediction"},
            "predicts 'flow_prediction'; allowed are epsilon, sample, v_prediction",
        ),
        ({"beta_start": "small"}, "gives no schedule"),
        ({"steps_offset": 30}, "--num-steps 50 does not fit .*the nearest that does is 49"),
    ],
)
def test_configurations_that_are_no_schedule(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_schedule({"_class_name": "DDIMScheduler", **SD, **config}, 50, 1.0)
