"""What temporal critics explained, what there was to explain, and what they do to overoptimization."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from common import HERE, of, table, told

from overopt_bench.report import readings
from overopt_bench.report.critics import second_half
from overopt_bench.report.load import Run
from overopt_bench.report.readings import Reading
from overopt_bench.report.statistics import corrected, difference, over_seeds
from overopt_bench.report.wording import interval, shown


def critics(runs: Sequence[Run]) -> list[str]:
    """What critics explained beside what there was to explain, and whether a reset one comes back."""
    base = json.loads((HERE / "ceiling.json").read_text(encoding="utf-8"))["rows"]
    known = {run.proxy for run in runs if run.algo == "tdpo_r"}
    rows = [critic(runs, proxy, linear(found)) for proxy, found in base.items() if proxy in known]
    return [
        "",
        "## The critic",
        "",
        "Explained variance of the returns over all five steps. The bar is half of what a linear critic of the same features, blind"
        " to prompt and step, explains on held-out chains of known prompts (`overopt-bench ceiling`, standard errors over prompts):"
        " of the base model's returns, and (mean of seeds 0 to 2) of those of the policy that TDPO ended with"
        " (`ceiling --run`). TDPO's is that of each epoch's returns before the critic was trained on them, over the second half of"
        " the run; mean over seeds with the 95 % interval. Recovery: what TDPO-R's critic explains in the last epochs before resets"
        " over what TDPO's does at the same queries and seeds.",
        "",
        table(pd.DataFrame(rows)),
        *what_it_does(runs),
    ]


def what_it_does(runs: Sequence[Run]) -> list[str]:
    """TDPO beside itself with a critic that learns nothing, and beside TDPO-R."""
    plain, reset = (of(runs, label, "imagereward", reference=True) for label in ("tdpo", "tdpo_r"))
    blind = of(runs, "tdpo [blind]", "imagereward")
    asked: list[tuple[str, Reading]] = [
        ("proxy at the end", partial(readings.end, key="train/imagereward/mean")),
        ("human at the end", partial(readings.end, key="train/human/mean")),
        ("human at the end, held-out prompts", partial(readings.end, key="heldout/human/mean")),
        ("fall of human", partial(readings.fall, split="train", gold="human")),
    ]
    sides = (("TDPO - TDPO with a critic that learns nothing", plain, blind), ("TDPO-R - TDPO", reset, plain))
    rows = []
    for name, one, two in sides:
        gain = readings.smallest([*one, *two], partial(readings.proxy_gain, split="train")) or 0.0
        there: Reading = partial(readings.gold_at_proxy_gain, split="train", gold="human", gain=gain)
        every = [*asked, (f"human at equal proxy gain ({gain:+.3f})", there)]
        found = [difference(readings.by_seed(one, reading), readings.by_seed(two, reading)) for _, reading in every]
        rows += [
            {"difference of": name, "read": what, **told(each), "p (Holm)": f"{p:.3f}",
             "shown": "yes" if shown(each, p) else "no"}
            for (what, _), each, p in zip(every, found, corrected(found), strict=True)
        ]  # fmt: skip
    return [
        "",
        "What it does to overoptimization, on imagereward: TDPO beside TDPO with a critic that learns nothing (`critic_lr=1e-12"
        " critic_updates=1`), and TDPO-R beside TDPO. Holm's correction is over the rows of one difference.",
        "",
        table(pd.DataFrame(rows)),
    ]


def linear(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The share that the published kind of critic could explain, with its error."""
    wanted = {"critic": "linear", "inputs": "features", "held_out": "chains"}
    (found,) = (row for row in rows if wanted.items() <= row.items())
    return dict(found["trained"])


def critic(runs: Sequence[Run], proxy: str, base: dict[str, float]) -> dict[str, str]:
    """One proxy's row."""
    plain, reset = (of(runs, label, proxy, reference=True) for label in ("tdpo", "tdpo_r"))
    ends = [
        json.loads(file.read_text(encoding="utf-8"))["rows"] for file in sorted(HERE.glob(f"ceiling-{proxy}-*.json"))
    ]
    trained = [linear(rows[proxy])["value"] for rows in ends]
    shares = [one.overall[second_half(one)].mean() for run in plain if (one := run.explained) is not None]
    found = over_seeds(np.array(shares))
    both = [
        (two.overall[two.before_reset], one.overall[: len(two.overall)][two.before_reset])
        for run in plain for other in reset if run.config["seed"] == other.config["seed"]
        if (one := run.explained) is not None and (two := other.explained) is not None
    ]  # fmt: skip
    after, without = (np.concatenate(side) for side in zip(*both, strict=True))
    return {
        "proxy": proxy, "ceiling, base model": f"{base['value']:.3f} ± {base['error']:.3f}",
        "ceiling, TDPO's last policy": f"{np.mean(trained):.3f} ({min(trained):.3f} to {max(trained):.3f})" if trained else "-",
        "TDPO, second half": f"{found.value:.3f} ({interval(found)}, {found.count} seeds)",
        "of the base model's": f"{found.value / base['value']:.0%}",
        "of the last policy's": f"{found.value / np.mean(trained):.0%}" if trained else "-",
        "resets": f"{len(after) / len(both):g} a run",
        "TDPO-R before them, TDPO there": f"{after.mean():.3f}, {without.mean():.3f}",
        "recovery": f"{after.mean() / without.mean():.0%} ({len(after)} resets)",
    }  # fmt: skip
