"""The nouns that algorithms, rewards and the harness share.

Axes: ``B`` samples, ``T`` denoising steps, ``C h w`` latent, ``H W`` pixels, ``D`` features.
Steps are counted in *sampling order*: ``i = 0`` is the noisiest, ``latents[:, i]`` is the input
of step ``i`` and ``latents[:, i + 1]`` its output.
"""

from overopt_bench.options import SuiteDefaults
from overopt_bench.types.algorithm import (
    Algorithm,
    AlgorithmParams,
    Candidates,
    ImageCost,
    MeteredReward,
    Selection,
    TrainContext,
)
from overopt_bench.types.metric import Evaluation, Metric, Number
from overopt_bench.types.mitigation import (
    ChainRows,
    Hook,
    LossRows,
    Mitigation,
    MitigationParams,
    Mitigations,
    TransitionRows,
    step_kl,
)
from overopt_bench.types.policy import Policy, Trajectory
from overopt_bench.types.resources import Resources
from overopt_bench.types.reward import DerivedReward, Reward, RewardParams
from overopt_bench.types.schedule import Prediction, Schedule
from overopt_bench.types.suite import Architecture, Suite
from overopt_bench.types.transition import Transition

__all__ = [
    "Algorithm",
    "AlgorithmParams",
    "Architecture",
    "Candidates",
    "ChainRows",
    "DerivedReward",
    "Evaluation",
    "Hook",
    "ImageCost",
    "LossRows",
    "MeteredReward",
    "Metric",
    "Mitigation",
    "MitigationParams",
    "Mitigations",
    "Number",
    "Policy",
    "Prediction",
    "Resources",
    "Reward",
    "RewardParams",
    "Schedule",
    "Selection",
    "Suite",
    "SuiteDefaults",
    "TrainContext",
    "Trajectory",
    "Transition",
    "TransitionRows",
    "step_kl",
]
