"""The pool of best-of-n: what it estimates on each half of a prompt's samples."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from overopt_bench.algorithms.best_of_n import best_of_n_kl, best_of_n_weights
from overopt_bench.compute.processes import World
from overopt_bench.evaluation.selection import SamplePool


class BestOf:
    """As much of best-of-n as a pool asks for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def weights(self, pool: int) -> torch.Tensor:
        return best_of_n_weights(pool, self.n)

    def kl(self) -> float:
        return best_of_n_kl(self.n)


PROXY = {"a": [3.0, 1, 2, 5, 0, 4, 9, 7], "b": [1.0, 2, 3, 4, 5, 6, 7, 8]}
GOLD = {"a": [1.0, 2, 3, 4, 5, 6, 7, 8], "b": [0.0, 1, 0, 1, 0, 1, 0, 1]}


def pool() -> SamplePool:
    """Two prompts, drawn in turns."""
    made = SamplePool({}, World(), torch.device("cpu"))
    made.prompts = ["a", "b"] * 8
    both = [torch.tensor([value for pair in zip(v["a"], v["b"], strict=True) for value in pair]) for v in (PROXY, GOLD)]
    made.proxy, made.scores = both[0], {"gold": both[1]}
    return made


def best(prompt: str, n: int, half: int | None = None) -> float:
    """The mean over all subsets of the gold of the proxy's favourite, by brute force."""
    pairs = list(zip(PROXY[prompt], GOLD[prompt], strict=True))
    pairs = pairs if half is None else pairs[half::2]
    chosen = [max(subset)[1] for subset in combinations(pairs, n)]
    return sum(chosen) / len(chosen)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_each_half_of_a_pool_has_its_own_estimate(n: int) -> None:
    row, (detail,) = pool().evaluate(BestOf(n))
    assert detail["prompts"] == ["a", "a", "b", "b"] and detail["index"] == [0, 1, 0, 1]
    expected = [best(prompt, n, half) for prompt in "ab" for half in (0, 1)]
    assert detail["scores"]["gold"] == pytest.approx(expected, abs=1e-5)
    whole = [best(prompt, n) for prompt in "ab"]
    assert row["train/gold/mean"] == pytest.approx(sum(whole) / 2)
    assert row["train/gold/stderr"] == pytest.approx(abs(whole[0] - whole[1]) / 2)  # of two prompts
    assert row["train/image_kl"] == best_of_n_kl(n) and row["train/sqrt_image_kl"] == best_of_n_kl(n) ** 0.5
    assert "train/path_kl/mean" not in row


def test_halves_that_are_smaller_than_n_have_none() -> None:
    row, details = pool().evaluate(BestOf(5))
    assert details == [] and row["train/gold/count"] == 2
