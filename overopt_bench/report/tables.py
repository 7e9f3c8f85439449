"""The tables: a row per proxy, algorithm and gold, and whether overoptimization took place, seed by seed."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from overopt_bench.report.cells import Cell
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.peaks import Paired
from overopt_bench.report.statistics import (
    Array,
    Estimate,
    at_matched,
    best_of_n_form,
    fit_best_of_n,
    fit_rl,
    over_seeds,
    rl_form,
)


def summary_table(group: Group, split: str = "train") -> pd.DataFrame:
    """Per proxy, algorithm and gold: gold at start, peak and end, the drop, matched comparisons, distance, diversity, time.

    Peaks are cross-fitted over images (see ``stats.cross_fitted_peak``). Matched columns compare the algorithms on
    one proxy where each first reaches the smallest final proxy, or the smallest final path KL, among them.
    Values are means over the seeds that recorded the gold, with 95 % t intervals; a single seed has none.
    """
    rows = []
    for proxy in group.proxies():
        labels = group.labels(proxy)
        trained = group.trained(proxy)
        match_proxy = _smallest_end(group, proxy, trained, f"{split}/{proxy}/mean")
        match_kl = _smallest_end(group, proxy, trained, f"{split}/path_kl/mean")
        for label, gold in product(labels, group.golds(proxy)):
            runs = [run for run in group.of(proxy, label) if run.recorded(gold, split)]
            if runs:
                where = {"proxy": proxy, "algorithm": label, "seeds": len(runs), "gold": gold_name(group, gold)}
                rows.append(where | _row(runs, proxy, gold, split, match_proxy, match_kl))
    return pd.DataFrame(rows)


def gold_name(group: Group, gold: str) -> str:
    """A gold reward as tables name it: "human (truth)" where it is the suite's truth."""
    return f"{gold} (truth)" if gold == group.truth else gold


def _smallest_end(group: Group, proxy: str, labels: list[str], key: str) -> float | None:
    ends = [run.last(key) for label in labels for run in group.of(proxy, label)]
    known = [end for end in ends if end is not None]
    return min(known) if known else None


def _row(
    runs: list[Run], proxy: str, gold: str, split: str, match_proxy: float | None, match_kl: float | None
) -> dict[str, Cell]:
    key = f"{split}/{gold}/mean"

    def seeds(values: list[float | None]) -> Estimate | None:
        known = [v for v in values if v is not None]
        return over_seeds(np.array(known)) if len(known) == len(values) and known else None

    peaks = [peak_of(run, split, gold) for run in runs]
    matched_proxy = [_matched(run, f"{split}/{proxy}/mean", key, match_proxy) for run in runs]
    matched_kl = [_matched(run, f"{split}/path_kl/mean", key, match_kl) for run in runs]
    return {
        "gold at start": seeds([float(run.curve(key)[1][0]) for run in runs]),
        "gold at peak": seeds([p["value"] for p in peaks]),
        "queries at peak": float(np.mean([p["queries"] for p in peaks])),
        "gold at end": seeds([run.last(key) for run in runs]),
        "drop": seeds([p["drop"] for p in peaks]),
        "proxy at start": seeds([float(run.curve(f"{split}/{proxy}/mean")[1][0]) for run in runs]),
        "proxy at end": seeds([run.last(f"{split}/{proxy}/mean") for run in runs]),
        "gold at matched proxy": seeds(matched_proxy),
        "gold at matched KL": seeds(matched_kl),
        "path KL": seeds([run.last(f"{split}/path_kl/mean") for run in runs]),
        "diversity": seeds([run.last(f"{split}/diversity") for run in runs]),
        "seconds": float(np.mean([run.curve("seconds")[1][-1] for run in runs])),
    }


def peak_of(run: Run, split: str, gold: str) -> dict[str, float]:
    """Cross-fitted where single images were kept; best-of-n's curve is an estimate over subsets and read as it is."""
    queries, values = run.curve(f"{split}/{gold}/mean")
    peak, points = run.peak(split, gold), run.points.get(split, ())
    if peak is None or sum(gold in point.rewards for point in points) != len(queries):
        top = int(values.argmax())
        return {"value": float(values[top]), "queries": float(queries[top]), "drop": float(values[top] - values[-1])}
    return {"value": peak.value, "queries": float(np.mean([queries[k] for k in peak.points])), "drop": peak.drop.mean}


def _matched(run: Run, x: str, y: str, target: float | None) -> float | None:
    if target is None:
        return None
    xs, ys = run.curve(x), run.curve(y)
    n = min(len(xs[1]), len(ys[1]))
    return at_matched(xs[1][:n], ys[1][:n], target)


def overoptimization_table(group: Group, split: str = "train") -> pd.DataFrame:
    """Seed by seed: did the proxy rise, did a gold rise to a peak, did it fall from there? Each by two standard errors.

    The errors are those of paired differences: the same prompts and noise at both points.
    """
    rows = []
    for run in sorted(group.runs, key=lambda r: (r.proxy, r.label, int(r.config["seed"]))):
        gain = run.gain(split, run.proxy)
        if gain is None or run.role == "stays":
            continue
        for gold in group.golds(run.proxy):
            peak = run.peak(split, gold)
            if peak is None:
                continue
            rows.append({
                "proxy": run.proxy, "algorithm": run.label, "seed": run.config["seed"],
                "gold": gold_name(group, gold), "proxy gain": gain, "gold rise to peak": peak.rise,
                "gold drop from peak": peak.drop, "proxy rose": _yes(gain), "gold rose": _yes(peak.rise),
                "gold fell": _yes(peak.drop), "overoptimized": "yes" if gain.shown and peak.drop.shown else "no",
                "images": len(run.points[split][0].prompts),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _yes(difference: Paired) -> str:
    return "yes" if difference.shown else "no"


def scaling_table(group: Group, split: str = "train") -> pd.DataFrame:
    """Gao et al.'s forms fitted to every gold of each seed over the base against d = sqrt(path KL), start left out.

    ``alpha`` is how fast gold is gained, ``beta`` how fast it is lost again; ``R2`` says how well the form holds.
    """
    rows: list[dict[str, Cell]] = []
    for proxy in group.proxies():
        for label, gold in product(group.labels(proxy), group.golds(proxy)):
            fits = [fit for run in group.of(proxy, label) if (fit := _scaling(run, f"{split}/{gold}/mean", split))]
            if fits:
                alpha, beta, r2 = (over_seeds(np.array(values)) for values in zip(*fits, strict=True))
                selected = group.of(proxy, label)[0].role == "selects"
                form = "d (alpha - beta d)" if selected else "d (alpha - beta log d)"
                rows.append({"proxy": proxy, "algorithm": label, "seeds": len(fits), "gold": gold_name(group, gold),
                             "form": form, "alpha": alpha, "beta": beta, "R2": r2})  # fmt: skip
    return pd.DataFrame(rows)


def _scaling(run: Run, key: str, split: str) -> tuple[float, float, float] | None:
    """(alpha, beta, R2) of one run; None where it has too few points away from the base."""
    d, gold = run.curve(f"{split}/sqrt_kl")[1], run.curve(key)[1]
    if len(d) != len(gold) or (away := d > 0).sum() < 3 or gold[away].std() == 0:
        return None
    form, fit = (best_of_n_form, fit_best_of_n) if run.role == "selects" else (rl_form, fit_rl)
    d, gain = d[away], gold[away] - gold[0]
    alpha, beta = fit(d, gain)
    residual = gain - form(d, alpha, beta)
    return alpha, beta, float(1 - (residual**2).sum() / ((gain - gain.mean()) ** 2).sum())


def cross_table(group: Group, split: str = "train") -> dict[str, tuple[list[str], list[str], Array]]:
    """Compute how far training on each proxy moved every reward, for each trained algorithm.

    Returns:
        By algorithm: the proxies trained on, the rewards scored by, and the change end - start of each reward ``[proxies,
        rewards]`` in standard deviations over the base model's images, averaged over seeds.
    """
    out: dict[str, tuple[list[str], list[str], Array]] = {}
    trained = [run for run in group.runs if run.points.get(split) and run.role == "trains"]
    names = {name for run in trained for name in run.points[split][0].rewards}
    golds = [gold for gold in group.golds() if gold in names]
    scored = [*golds, *sorted(names - {*golds})]
    labels = dict.fromkeys(label for proxy in group.proxies() for label in group.labels(proxy))
    shown = {run.label for run in trained}
    for label in (label for label in labels if label in shown):
        proxies = [p for p in group.proxies() if group.of(p, label)]
        values = np.full((len(proxies), len(scored)), np.nan)
        for r, proxy in enumerate(proxies):
            for c, reward in enumerate(scored):
                known = [s for run in group.of(proxy, label) if (s := run.scores(split, reward)) is not None]
                if known:
                    values[r, c] = np.mean([(s[-1].mean() - s[0].mean()) / (s[0].std() + 1e-12) for s in known])
        out[label] = (proxies, scored, values)
    return out


def reference_table(group: Group, split: str = "train") -> pd.DataFrame:
    """A group's algorithms and those of its reference records, all read after equally many queries.

    That is, per proxy, as many as every run has spent; between two evaluations a value is interpolated. Means over
    seeds with 95 % t intervals. Empty where the group has no reference.
    """
    rows: list[dict[str, Cell]] = []
    if group.reference is None:
        return pd.DataFrame()
    parts = (("", group), (", reference", group.reference))
    for proxy in group.proxies():
        queries = group.shared_queries(proxy)
        for gold, (suffix, part) in product(group.golds(proxy), parts):
            for label in part.labels(proxy):
                if runs := part.of(proxy, label, gold):
                    rows.append({
                        "proxy": proxy, "gold": gold_name(group, gold), "algorithm": label + suffix, "seeds": len(runs),
                        "queries": queries, "gold at start": _at(runs, f"{split}/{gold}/mean", 0),
                        "gold there": _at(runs, f"{split}/{gold}/mean", queries),
                        "proxy there": _at(runs, f"{split}/{proxy}/mean", queries),
                        "path KL there": _at(runs, f"{split}/path_kl/mean", queries),
                    })  # fmt: skip
    return pd.DataFrame(rows)


def _at(runs: list[Run], key: str, queries: float) -> Estimate | None:
    values = [value for run in runs if (value := run.at(key, queries)) is not None]
    return over_seeds(np.array(values)) if values else None
