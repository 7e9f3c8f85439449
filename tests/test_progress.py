"""What a run says of itself while it goes on: nothing that means nothing."""

from __future__ import annotations

from typing import Any

import pytest

from overopt_bench.config import resolve
from overopt_bench.training import progress as module
from overopt_bench.training.progress import Progress


class Spent:
    """A budget of which this much is spent."""

    spent = 0.0


def line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, spent: float, **given: Any) -> str:
    """What is printed at an evaluation, 10 seconds after the start."""
    budget, now, spends = Spent(), [100.0], given.pop("spends", True)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    made: Any = resolve({"algo": "ddpo", "proxy": "aesthetic", "suite": "mini", "budget": 200, **given})
    with Progress(made, budget, spends=spends) as shown:
        budget.spent, now[0] = spent, 110.0
        shown.evaluated({"train/aesthetic/mean": 0.5, "train/human/mean": 0.25, "train/sqrt_kl": 2.0})
    return capsys.readouterr().out.strip()


SCORES = "proxy 0.500  human 0.250  sqrt(KL) 2.000"


@pytest.mark.parametrize(
    ("spent", "given", "text"),
    [
        (0, {}, f"0/200 queries  {SCORES}"),
        (50, {}, f"50/200 queries  {SCORES}  0.2 s a query  0:30 left"),
        (200, {}, f"200/200 queries  {SCORES}  0.05 s a query"),
        (50, {"budget_unit": "seconds"}, f"50/200 seconds  {SCORES}  0:30 left"),
        (100, {"budget_unit": "nfe"}, f"100/200 U-Net evaluations  {SCORES}  0.1 s a U-Net evaluation  0:10 left"),
        (200, {"algo": "base", "spends": False}, f"no queries spent  {SCORES}"),
    ],
)
def test_the_line_of_an_evaluation(
    spent: float, given: dict[str, Any], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert line(capsys, monkeypatch, spent, **given) == text
