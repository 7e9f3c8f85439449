"""The tables: a row per proxy, algorithm and gold, and whether overoptimization took place, seed by seed."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from overopt_bench.report import readings
from overopt_bench.report.cells import Cell
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.peaks import Paired
from overopt_bench.report.readings import Reading, estimate
from overopt_bench.report.statistics import (
    Array,
    Estimate,
    best_of_n_form,
    fit_best_of_n,
    fit_rl,
    over_seeds,
    rl_form,
)


def summary_table(group: Group, split: str = "train") -> pd.DataFrame:
    """Per proxy, algorithm and gold: gold at start, peak and end, the drop, matched comparisons, distance, diversity, time.

    Peaks are cross-fitted over images (see ``peaks.cross_fitted_peak``). Matched columns compare the algorithms on
    one proxy where each first reaches the smallest final gain of the proxy, or the smallest final path KL, among them.
    Values are means over the seeds that recorded the gold, with 95 % t intervals; a single seed has none.
    """
    rows = []
    for proxy in group.proxies():
        labels = group.labels(proxy)
        trained = [run for label in group.trained(proxy) for run in group.of(proxy, label)]
        gain = readings.smallest(trained, partial(readings.proxy_gain, split=split))
        kl = readings.smallest(trained, lambda run: run.last(f"{split}/path_kl/mean"))
        for label, gold in product(labels, group.golds(proxy)):
            runs = [run for run in group.of(proxy, label) if run.recorded(gold, split)]
            if runs:
                where = {"proxy": proxy, "algorithm": label, "seeds": len(runs), "gold": gold_name(group, gold)}
                rows.append(where | _row(runs, proxy, gold, split, gain, kl))
    return pd.DataFrame(rows)


def gold_name(group: Group, gold: str) -> str:
    """A gold reward as tables name it: "human (truth)" where it is the suite's truth."""
    return f"{gold} (truth)" if gold == group.truth else gold


def _row(runs: list[Run], proxy: str, gold: str, split: str, gain: float | None, kl: float | None) -> dict[str, Cell]:
    key = f"{split}/{gold}/mean"

    def seeds(reading: Reading) -> Estimate | None:
        read = {run: reading(run) for run in runs}
        return estimate(runs, read.get) if None not in read.values() else None

    queries, seconds = (
        seeds(reading)
        for reading in (partial(readings.peak_queries, split=split, gold=gold), lambda r: r.last("seconds"))
    )
    return {
        "gold at start": seeds(partial(readings.start, key=key)),
        "gold at peak": seeds(partial(readings.peak_value, split=split, gold=gold)),
        "queries at peak": None if queries is None else queries.value,
        "gold at end": seeds(lambda run: run.last(key)),
        "drop": seeds(partial(readings.fall, split=split, gold=gold)),
        "proxy at start": seeds(partial(readings.start, key=f"{split}/{proxy}/mean")),
        "proxy at end": seeds(lambda run: run.last(f"{split}/{proxy}/mean")),
        "gold at matched proxy": None
        if gain is None
        else seeds(partial(readings.gold_at_proxy_gain, split=split, gold=gold, gain=gain)),
        "gold at matched KL": None
        if kl is None
        else seeds(partial(readings.gold_at_path_kl, split=split, gold=gold, kl=kl)),
        "path KL": seeds(lambda run: run.last(f"{split}/path_kl/mean")),
        "image KL": seeds(lambda run: run.last(f"{split}/image_kl")),
        "diversity": seeds(lambda run: run.last(f"{split}/diversity")),
        "seconds": None if seconds is None else seconds.value,
    }


def overoptimization_table(group: Group, split: str = "train") -> pd.DataFrame:
    """Seed by seed: did the proxy rise, did a gold rise to a peak, did it fall from there? Each by two standard errors.

    The errors are over prompts, of paired differences: the same prompts and noise at both points.
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
    """Gao et al.'s forms fitted to every gold of each seed over the base against d, start left out.

    d is the root of the path KL, for what selects of the KL of its images.

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
                rows.append({
                    "proxy": proxy, "algorithm": label, "seeds": len(fits), "gold": gold_name(group, gold),
                    "d": "sqrt(image KL)" if selected else "sqrt(path KL)", "form": form, "alpha": alpha, "beta": beta,
                    "R2": r2,
                })  # fmt: skip
    return pd.DataFrame(rows)


def _scaling(run: Run, key: str, split: str) -> tuple[float, float, float] | None:
    """(alpha, beta, R2) of one run; None where it has too few points away from the base."""
    selects = run.role == "selects"
    d, gold = run.together(f"{split}/{'sqrt_image_kl' if selects else 'sqrt_kl'}", key)
    if (away := d > 0).sum() < 3 or gold[away].std() == 0:
        return None
    form, fit = (best_of_n_form, fit_best_of_n) if selects else (rl_form, fit_rl)
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
    return estimate(runs, lambda run: run.at(key, queries))
