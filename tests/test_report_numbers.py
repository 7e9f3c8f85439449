"""Numbers that the report could mistake for others: means, splits, families, cells of a grid; against hand-worked cases."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fake_runs import CELL, COLUMNS, write_run
from PIL import Image

from overopt_bench.evaluation.clusters import standard_error, units
from overopt_bench.report import curves
from overopt_bench.report.cells import show
from overopt_bench.report.comparisons import END, FALL, GAIN, KL, comparisons, comparisons_table
from overopt_bench.report.filmstrip import Album, filmstrips, stills
from overopt_bench.report.findings import findings, outcomes
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.peaks import Paired
from overopt_bench.report.sensitivity import sensitivities
from overopt_bench.report.statistics import Estimate, holm
from overopt_bench.report.tables import scaling_table, summary_table
from overopt_bench.report.verdicts import verdicts

REFERENCE = Path(__file__).parent.parent / "results" / "reference" / "mini"


def one_group(folder: Path) -> Group:
    (group,) = group_runs(find_runs([folder]))
    return group


def held_out_too(folder: Path, kl: float, gold: float) -> None:
    """Add a held-out split to a run: the path KL of the training prompts times ``kl``, their gold plus ``gold``."""
    file = folder / "metrics.jsonl"
    lines = []
    for line in map(json.loads, file.read_text().splitlines()):
        if line["event"] == "scores":
            scores = {k: [v + gold * (k == "human") for v in values] for k, values in line["scores"].items()}
            lines.append({**line, "split": "heldout", "scores": scores})
        if line["event"] == "eval":
            own = {f"heldout/{k.removeprefix('train/')}": v for k, v in line.items() if k.startswith("train/")}
            own["heldout/path_kl/mean"] *= kl
            own["heldout/human/mean"] += gold
            line |= own
        lines.append(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_line_is_the_mean_over_seeds(tmp_path: Path) -> None:
    for seed, curve in enumerate(((0.0, 1, 2, 3, 4), (0, 3, 6, 9, 12), (0, 2, 1, 0, 2))):
        write_run(tmp_path, "ddpo", seed=seed, gold=("imagereward",), others={"imagereward": curve})
    group = one_group(tmp_path)
    expected = np.mean([run.curve("train/imagereward/mean")[1] for run in group.runs], 0)
    (panel,) = (ax for ax in curves.proxy_and_gold(group).axes if ax.get_ylabel() == "gold: imagereward")
    line = panel.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert expected == pytest.approx([0, 2, 3, 4, 6], abs=0.2)


def test_gold_at_equal_kl_is_read_at_the_kl_of_its_own_split(tmp_path: Path) -> None:
    """KL 0, 1, 4, 9, 16 on training prompts, where both end; on held-out ones four times that, and twice.

    There tdpo_r ends at 32 nats, and ddpo, at 0, 4, 16, 36 and 64, passes these after four fifths of the way from its
    third point (gold 0.7) to its fourth (0.6): at 0.62.
    """
    for seed in range(3):
        held_out_too(write_run(tmp_path, "ddpo", seed=seed, noise=0), kl=4, gold=0)
        held_out_too(write_run(tmp_path, "tdpo_r", seed=seed, noise=0), kl=2, gold=0)
    group = one_group(tmp_path)
    quirk = float(np.mean([run.curve("train/human/mean")[1][0] - 0.5 for run in group.of("aesthetic", "ddpo")]))
    train, held_out = (summary_table(group, split).set_index("algorithm") for split in ("train", "heldout"))
    assert train.loc["ddpo", "gold at matched KL"].value == pytest.approx(0.5 + quirk)
    assert held_out.loc["ddpo", "gold at matched KL"].value == pytest.approx(0.62 + quirk)
    found = {(one.split, one.question): one for one in comparisons(group)}
    assert found["train", KL].difference.value == pytest.approx(0.8 - 0.5)
    assert found["heldout", KL].difference.value == pytest.approx(0.8 - 0.62)
    assert found["train", KL].where == "at equal path KL (16 nats)"
    assert found["heldout", KL].where == "at equal path KL (32 nats)"
    assert found["heldout", GAIN].difference.value == pytest.approx(0.8 - 0.5)


def test_findings_and_comparisons_add_held_out_prompts(tmp_path: Path) -> None:
    for seed in range(8):
        held_out_too(write_run(tmp_path, "ddpo", seed=seed), kl=1, gold=0.1)
        held_out_too(write_run(tmp_path, "tdpo_r", seed=seed), kl=1, gold=0.2)
    group = one_group(tmp_path)
    ends = {one.split: one.difference.value for one in comparisons(group) if one.question == END}
    assert ends == {"train": pytest.approx(0.3), "heldout": pytest.approx(0.4)}
    ddpo, tdpo_r = findings(group, outcomes(group))
    assert "fell by 0.20" in ddpo.said.text and "On held-out prompts it fell by 0.20" in ddpo.said.text
    assert ddpo.said.text.count("8 of 8 seeds, p = 0.016 (Holm)") == 2  # of two algorithms: 2 x 2/2^8
    assert "was not shown to fall" in tdpo_r.said.text and "0 of 8 seeds, p = 1.000 (Holm)" in tdpo_r.said.text


def test_p_is_corrected_for_the_pairs_of_one_question(tmp_path: Path) -> None:
    """Three algorithms are three pairs: of six seeds that all agree p is 2/64, corrected 3 x 2/64 for all three."""
    for seed in range(6):
        for algo, last in (("ddpo", 1.0), ("tdpo_r", 2.0), ("nft", 3.0)):
            others = {"imagereward": (0.0, 0.1, 0.2, 0.3, last)}
            write_run(tmp_path, algo, seed=seed, gold=("imagereward",), others=others)
    found = [one for one in comparisons(one_group(tmp_path)) if one.question == END]
    assert [one.difference.p for one in found] == [2 / 64] * 3
    assert [one.p for one in found] == [3 * 2 / 64] * 3 == holm([2 / 64] * 3) and not any(one.shown for one in found)
    table = comparisons_table(one_group(tmp_path), found)
    assert list(table["p (Holm)"]) == ["0.0938"] * 3 and list(table["more in"]) == ["6 of 6 pairs"] * 3


def test_a_frame_is_cut_out_by_line_and_column(tmp_path: Path) -> None:
    """Cell k of a grid stands in line k // columns and column k % columns: here each cell has a grey of its own."""
    folder = write_run(tmp_path, "ddpo")
    greys = 10 * np.arange(2 * COLUMNS, dtype=np.uint8).reshape(2, COLUMNS)  # [lines, columns]
    pixels = np.repeat(np.repeat(greys, CELL, 0), CELL, 1)
    for file in (folder / "images").glob("*.png"):
        Image.fromarray(np.stack([pixels] * 3, -1)).save(file)
    (strip,) = filmstrips(one_group(tmp_path), Album())
    seen = []
    for prompt in strip["prompts"]:  # the first image of each, of four
        picture = prompt["rows"][0]["frames"][0]["src"].split(",")[1]
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.size == (CELL, CELL)
            seen += [{*np.asarray(image).flat}]
    assert seen == [{10 * k} for k in (0, 4, 8, 12)]


def test_frames_are_of_the_first_seed_whose_pictures_are_there(tmp_path: Path) -> None:
    """A record that came without its pictures says everything but what it looked like."""
    folders = [write_run(tmp_path, "ddpo", seed=seed) for seed in range(3)]
    for file in (folders[0] / "images").glob("*.png"):
        file.unlink()
    (strip,) = filmstrips(one_group(tmp_path), Album())
    assert {row["seed"] for prompt in strip["prompts"] for row in prompt["rows"]} == {1}
    assert len(stills(one_group(tmp_path), "aesthetic", Album())["ddpo"]) > 0


def test_a_picture_whose_name_no_file_can_have_is_not_there(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "ddpo")
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines.replace("images/", "i" * 300))
    assert filmstrips(one_group(tmp_path), Album()) == []


def test_a_peak_below_the_end_is_printed_with_its_reason(tmp_path: Path) -> None:
    """Noise alone: one half's highest point is not the other's, so what is read there may lie below the end."""
    reason = "the peak is read on other images than it was located on"
    said = []
    for seed in range(12):
        flat = {"imagereward": (0.5,) * 5}
        write_run(tmp_path / str(seed), "ddpo", seed=seed, gold=("imagereward",), others=flat, noise=0.3)
        group = one_group(tmp_path / str(seed))
        (outcome,) = outcomes(group)
        (finding,) = findings(group, [outcome])
        assert (reason in finding.said.text) is (outcome.peak < outcome.end)
        said.append(reason in finding.said.text)
    assert any(said) and not all(said)


def test_images_kept_by_selection_have_a_distance_of_their_own(tmp_path: Path) -> None:
    """Records from before it had a name called it path KL; it is in no column, match or figure with that of chains."""
    write_run(tmp_path, "best_of_n")
    write_run(tmp_path, "ddpo")
    group = one_group(tmp_path)
    table = summary_table(group).set_index("algorithm")
    assert table.loc["best_of_n", "path KL"] is None and table.loc["best_of_n", "image KL"].value == 16
    assert table.loc["ddpo", "image KL"] is None and table.loc["ddpo", "path KL"].value == 16
    assert table.loc["best_of_n", "gold at matched KL"] is None
    assert dict(scaling_table(group).set_index("algorithm")["d"]) == {
        "best_of_n": "sqrt(image KL)", "ddpo": "sqrt(path KL)"
    }  # fmt: skip
    own = curves.against_image_kl(group)
    assert own is not None
    for figure, labels in ((curves.against_kl(group), {"ddpo"}), (own, {"best_of_n"})):
        drawn = {line.get_label().split(" ")[0] for ax in figure.axes for line in ax.get_lines()}
        assert drawn == labels


def test_a_pool_is_cross_fitted_by_its_halves(tmp_path: Path) -> None:
    """An evaluation of four images a prompt, then two estimates a prompt: each point has two numbers a prompt."""
    folder = write_run(tmp_path, "best_of_n", noise=0)
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in (line for line in lines if line["event"] == "scores" and line["queries"]):
        line["prompts"] = [p for p in dict.fromkeys(line["prompts"]) for _ in (0, 1)]
        high = {100: (0.9, 0.2), 200: (0.3, 0.8)}.get(line["queries"], (0.5, 0.5))  # each half has its own peak
        line["scores"] = {name: [*high] * 4 for name in line["scores"]}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = find_runs([tmp_path])
    peak = run.peak("train", "human")
    assert peak is not None and peak.points == (1, 2)
    assert peak.value == pytest.approx((0.3 + 0.2) / 2) and peak.drop.mean == pytest.approx(0.25 - 0.5)


def test_errors_of_the_committed_records_are_larger_over_prompts() -> None:
    """Images of one prompt agree: over prompts the errors of the last golds are about 1.35 times those over images."""
    ratios = []
    for run in find_runs([REFERENCE / "imagereward", REFERENCE / "aesthetic"]):
        scores = run.scores("train", "human")
        if run.role == "trains" and scores is not None:
            ratios.append(standard_error(units(scores[-1], run.prompts("train"))) / standard_error(scores[-1]))
    assert len(ratios) >= 50 and np.median(ratios) == pytest.approx(1.35, abs=0.1)


def test_falls_are_compared_only_where_something_fell(tmp_path: Path) -> None:
    for seed in range(6):
        for tag in ("a", "b"):
            write_run(tmp_path, "tdpo_r", seed=seed, tag=tag, folder=tmp_path / f"{tag}{seed}")
    group = one_group(tmp_path)
    compared, happened = comparisons(group), outcomes(group)
    assert FALL in {one.question for one in compared}
    texts = [one.said.text for one in verdicts(group, compared, happened, sensitivities(group))]
    assert not any("fall of the" in text or "fell by" in text or "keeps" in text for text in texts)
    assert texts[-1].endswith(
        "no earlier than the budget's end with tdpo_r [a], tdpo_r [b], whose truth was not seen to fall."
    )


def test_what_is_not_a_number_is_a_dash() -> None:
    nan = float("nan")
    assert [show(cell) for cell in (None, nan, 3.0, 3, "word")] == ["-", "-", "3", "3", "word"]
    assert show(Estimate(nan, nan, nan, 3)) == "-" and show(Estimate(1.0, nan, nan, 3)) == "1.000"
    assert show(Paired(nan, nan)) == "-" and show(Paired(1.0, nan)) == "1.0000"
    assert show(Paired(1.0, 0.5)) == "1.0000 ± 0.5000" and show(Estimate(1.0, 0.5, 1.5, 3)) == "1.000 [0.500, 1.500]"
