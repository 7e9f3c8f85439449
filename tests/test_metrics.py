"""Metrics: what the first three are, how somebody else's is asked and refused, and where its numbers go."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fake_runs import write_run
from hostile import HOSTILE
from torch import Tensor

from overopt_bench import cli, registry
from overopt_bench.commands.list import describe
from overopt_bench.evaluation.measuring import load_metrics, measure, probe_foreign_metrics
from overopt_bench.evaluation.metrics import diversity
from overopt_bench.registry import get_suite, register_metric
from overopt_bench.report import curves, layout
from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.measured import measured, metrics_table
from overopt_bench.types import Evaluation, Metric, Number

SHARPNESS = Path(__file__).parent / "plugins" / "sharpness.py"
HEAD = (
    "import torch\nfrom overopt_bench.registry import register_metric\nfrom overopt_bench.types import Metric, Number\n"
    "@register_metric\nclass Mine(Metric):\n    name = 'mine'\n    numbers = (Number('mine', 'Mine'),)\n"
)


def seen(kl: Tensor | None = None, **scores: list[float]) -> Evaluation:
    """Two images of one prompt and one of another, whose features have known angles."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    held = {name: torch.tensor(values) for name, values in scores.items()}
    return Evaluation("train", ("cat", "cat", "dog"), torch.zeros(3, 3, 8, 8), held, kl, lambda _: features)


class Answer(Metric):
    """Gives what a test puts in."""

    name = "answer"
    numbers = (Number("answer", "Answer"), Number("other", "Other"))

    def __init__(self, given: Any) -> None:
        self.given = given

    def __call__(self, seen: Evaluation) -> Any:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def test_the_first_three_by_hand_in_the_order_of_the_record() -> None:
    """Errors are of two prompts' means: human 1.5 and 6, path KL 5 and 5, without the last two steps 1.5 and 3."""
    kl = torch.tensor([[1.0, 2.0, 4.0], [2.0, 0.0, 1.0], [3.0, 1.0, 1.0]])
    row = measure(seen(kl, human=[1.0, 2.0, 6.0]), load_metrics())
    assert [*row.items()] == [
        ("train/human/mean", 3.0), ("train/human/stderr", 2.25), ("train/human/count", 3),
        ("train/path_kl/mean", 5.0), ("train/path_kl/stderr", 0.0), ("train/path_kl/count", 3),
        ("train/path_kl_without_last_two/mean", 2.0),
        ("train/path_kl_without_last_two/stderr", pytest.approx(0.75)),
        ("train/path_kl_without_last_two/count", 3),
        ("train/sqrt_kl", pytest.approx(math.sqrt(5))), ("train/diversity", 1.0),
    ]  # fmt: skip
    assert [*measure(seen(), load_metrics())] == ["train/diversity"]


def test_features_are_computed_once_and_only_for_whom_they_are_asked() -> None:
    calls = []

    def encoder(images: Tensor) -> Tensor:
        calls.append(len(images))
        return torch.eye(3)

    what = Evaluation("train", ("a", "a", "b"), torch.zeros(3, 3, 8, 8), {}, None, encoder)
    measure(what, [Answer({"answer": 1.0})])
    assert calls == []
    measure(what, load_metrics()), what.features
    assert calls == [3]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ValueError("no"), "metric 'answer' failed on the split 'train': ValueError: no"),
        (3.0, "metric 'answer' must give a mapping of names to numbers, not float"),
        ({"answer": float("nan")}, "metric 'answer' gave nan for 'train/answer'"),
        ({"answer": torch.tensor([1.0, math.inf, 2.0])}, "not finite for 1 of 3 images"),
        ({"answer": torch.zeros(2)}, r"'train/answer' as torch.float32 of shape \(2,\); .* of 3 floats"),
        ({"answer": torch.zeros(3, dtype=torch.int64)}, "as torch.int64"),
        ({"answer": "high"}, "'train/answer' as str"),
        ({"answer": True}, "'train/answer' as bool"),
        ({"anwser": 1.0}, "gave 'anwser', which is none of its `numbers`: answer, other"),
        ({"human": torch.zeros(3)}, "gave 'human', but 'train/human/count' is recorded already"),
    ],
)
def test_an_answer_that_is_none_is_a_sentence_that_names_the_metric(given: Any, message: str) -> None:
    with pytest.raises(FloatingPointError, match=message) as caught:
        measure(seen(human=[1.0, 2.0, 3.0]), [*load_metrics(), Answer(given)])
    assert "'answer'" in str(caught.value)


def test_nothing_and_whole_numbers_are_answers() -> None:
    assert measure(seen(), [Answer({"answer": None, "other": 2})]) == {"train/answer": None, "train/other": 2}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def __call__(self, seen): return {'mine': float('nan')}", "gave nan"),
        ("def __call__(self, seen): return {'mine': seen.kl.sum(1)}", "failed on .*tried on random images, without KL"),
        ("def __call__(self, seen): return {'mine': seen.scores['nobody']}", "KeyError: 'nobody'"),
        ("def __init__(self): raise OSError('no file')\n    __call__ = None", "'mine' cannot be made: .*"),
        ("numbers = {'mine': 1}\n    def __call__(self, seen): return {}", "`numbers` must be a tuple"),
    ],
)
def test_a_metric_that_cannot_work_is_refused_before_anything_is_written(
    body: str, message: str, tmp_path: Path, clean_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"{HEAD}    {body}\n")
    words = ["run", "--algo", "ddpo", "--proxy", "aesthetic", "--suite", "mini", "--budget", "32", "--device", "cpu"]
    assert cli.main([*words, "--plugin", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: metric 'mine'") and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert re.search(message, error)


def test_metrics_of_this_package_need_no_probe(clean_registry: None) -> None:
    suite = get_suite("mini")
    probe_foreign_metrics(suite, ["human"], ["fox face"], 3)

    @register_metric
    class Seen(Metric):
        """Counts its images."""

        name = "seen"
        numbers = (Number("seen", "Images"),)

        def __call__(self, seen: Evaluation) -> dict[str, float]:
            shapes.append((tuple(seen.images.shape), tuple(seen.features.shape), seen.prompts, [*seen.scores], seen.kl))
            return {"seen": len(seen.images)}

    shapes: list[Any] = []
    probe_foreign_metrics(suite, ["human"], ["fox face"], 3)
    for shape in shapes:
        assert shape[:4] == ((4, 3, 32, 32), (4, suite.clip_dim), ("fox face",) * 4, ["human"])
    assert [kl if kl is None else tuple(kl.shape) for *_, kl in shapes] == [(4, 3), None]


def test_somebody_elses_metric_is_recorded_drawn_and_tabled(
    tmp_path: Path, clean_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line; the report knows nothing but the record, for it is made without the plugin."""
    without = registry.metrics.classes()
    small = ["--budget", "32", "--eval-points", "2", "--eval-images", "4", "--num-steps", "2", "--device", "cpu"]
    words = ["run", "--algo", "ddpo", "--proxy", "aesthetic", "--suite", "mini", *small]
    assert cli.main([*words, "--plugin", str(SHARPNESS), "--out", str(tmp_path / "out")]) == 0
    (record,) = (tmp_path / "out").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    first, last = [row for row in rows if row["event"] == "eval"]
    assert [*first][-1] == "heldout_style/kl_per_sharpness" and first["heldout_style/kl_per_sharpness"] is None
    keys = [key for key in first if key.startswith("train/")]
    assert keys[-5:] == [
        "train/diversity", "train/sharpness/mean", "train/sharpness/stderr", "train/sharpness/count",
        "train/kl_per_sharpness",
    ]  # fmt: skip
    assert last["train/kl_per_sharpness"] == pytest.approx(
        last["train/path_kl/mean"] / last["train/sharpness/mean"], rel=1e-5
    )
    monkeypatch.setattr(registry.metrics, "_classes", without)
    assert cli.main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "figures" / "metric_sharpness.pdf").stat().st_size > 1000
    table = pd.read_csv(tmp_path / "report" / "tables" / "metrics_train.csv").set_index("recorded as")
    shown = table.loc["train/sharpness/mean"]
    assert (shown["unit"], shown["better"], shown["seeds"]) == ("% of the range", "higher", 1)
    assert shown["at start"] == first["train/sharpness/mean"] and shown["at end"] == last["train/sharpness/mean"]
    assert shown["change"] == pytest.approx(last["train/sharpness/mean"] - first["train/sharpness/mean"])
    assert table.loc["train/kl_per_sharpness", "better"] == "lower"
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Difference of neighbours &lt;b&gt;&amp;&lt;/b&gt; $x_1$" in page and 'alt="Sharpness of the images"' in page


def test_what_a_record_says_of_metrics_is_taken_for_text_and_for_no_more(tmp_path: Path) -> None:
    """A stranger's record, whose description is hostile or malformed, costs no more than what cannot be read."""
    number = {"name": "odd", "title": HOSTILE[0], "unit": HOSTILE[1], "better": "sideways"}
    numbers = [number, {"name": "gone", "title": "never recorded", "unit": "", "better": None}, {"name": 3}, "x", None]
    described = {"../up": {"title": 7, "numbers": numbers}, "none": {"numbers": "x"}, "text": "y", "list": [1]}
    folder = write_run(tmp_path / "results", sessions=[{"queries": 0, "metrics": described}, {"metrics": [1]}])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for k, line in enumerate(lines):
        line |= {"train/odd": float(k)} if line["event"] == "eval" else {}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = group_runs(find_runs([tmp_path / "results"]))
    assert [metric.name for metric in measured(group)] == ["kl", "diversity", "../up"]
    (odd,) = measured(group)[2].numbers.values()
    assert odd == Number("odd", HOSTILE[0], HOSTILE[1]) and measured(group)[2].title == HOSTILE[0]
    row = metrics_table(group).set_index("recorded as").loc["train/odd"]
    assert (row["at start"].value, row["at end"].value, row["better"]) == (1.0, 9.0, "")
    with layout.drawing():
        figure = curves.metric(group, measured(group)[2])
        saved = layout.save(figure, tmp_path / "figures", "metric_../up")
    assert figure.axes[0].get_ylabel() == HOSTILE[1] and saved.parent == tmp_path / "figures"


def test_list_says_what_metrics_there_are() -> None:
    said = describe("metrics").splitlines()
    assert [line.split()[0] for line in said if line.startswith("  ") and line[2] != " "] == [
        "scores",
        "kl",
        "diversity",
    ]
    assert (
        "      diversity                  Diversity within a prompt; mean pairwise CLIP cosine distance; higher is better"
        in said
    )


def test_diversity_by_hand() -> None:
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0], [-1, 0]])
    # prompt a: one pair at distance 1; prompt b: distances 0, 2, 2
    assert diversity(features, ["a", "a", "b", "b", "b"]) == pytest.approx((1 + 4 / 3) / 2)
    assert diversity(features[:2], ["a", "b"]) is None
