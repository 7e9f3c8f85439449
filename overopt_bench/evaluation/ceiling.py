"""What critics could explain of a policy's returns: its table, its sentences, its file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from overopt_bench.errors import UserError
from overopt_bench.files import atomic

if TYPE_CHECKING:
    import pandas as pd

    from overopt_bench.evaluation.explaining import Explained, HeldOut, Share

COLUMNS = 8  # steps in the table, at most
BASE = "the base model"
HELD_OUT: dict[HeldOut, str] = {"chains": "held-out chains of known prompts", "prompts": "held-out prompts"}


def of_run(run: Path, queries: int | None) -> str:
    """Say in words whose policy was measured: a run's, after as many queries where that is known."""
    spent = "a number of queries that its folder does not tell" if queries is None else f"{queries:,} queries"
    return f"the policy of {run} after {spent}"


@dataclass(frozen=True)
class Ceiling:
    """What was asked and found.

    Attributes:
        policy: whose images, in words: ``BASE`` or ``of_run``.
        queries: how many that policy was trained on; 0 for the base model, None where that is not known.
        suite: its name.
        split: of the suite's prompts, or that they are a run's own.
        prompts: how many were drawn of.
        images: how many were drawn.
        seed: of prompts, noise and critics.
        num_steps: T.
        trained_steps: how many steps, from the noisiest on, are trained on.
        rows: by proxy, a row for each kind of critic and of held-out data.
    """

    policy: str
    queries: int | None
    suite: str
    split: str
    prompts: int
    images: int
    seed: int
    num_steps: int
    trained_steps: int
    rows: dict[str, tuple[Explained, ...]]

    def table(self) -> pd.DataFrame:
        """One row a proxy, critic and kind of held-out data, one column a number; every row says whose policy it is."""
        import pandas as pd

        return pd.DataFrame([
            {"policy": self.policy, "queries": self.queries, "proxy": proxy, "critic": row.critic, "inputs": row.inputs,
             "held_out": row.held_out, **{
                f"{name}{suffix}": number
                for name, share in (
                    ("pooled", row.pooled), ("trained", row.trained), *((f"step {k}", s) for k, s in enumerate(row.steps))
                )
                for suffix, number in (("", share.value), (" error", share.error))
            }}
            for proxy, found in self.rows.items() for row in found
        ])  # fmt: skip

    def sentences(self) -> Iterator[str]:
        """Say in words what the numbers of each proxy mean, of critics that are chosen before the numbers are known."""
        kept = "" if self.policy == BASE else ", by the last adapter that it saved, the only one that a run keeps"
        yield f"Returns are those of {self.policy}{kept}."
        yield (
            "Errors are standard errors over prompts. A critic finds nothing at a step where its share is not two of them"
            " above zero; there may still be as much as the error allows, or what another critic would find."
        )
        for proxy, found in self.rows.items():
            rows = {(row.critic, row.inputs, row.held_out): row for row in found}
            for held_out, where in HELD_OUT.items():
                bar = rows["linear", "features", held_out]
                each = rows["linear", "features, a model a step", held_out]
                mlp = rows["mlp", "features, step, prompt", held_out]
                yield (
                    f"{proxy}, {where}: of the variance of returns a linear critic of the features alone explains"
                    f" {percent(bar.pooled)} over all steps and {percent(bar.trained)} over those trained on"
                    f" (0 to {self.trained_steps - 1}). A linear model of each step explains {percent(each.pooled)} over all"
                    f" steps and {nothing(each)}; the perceptron that is told step and prompt {percent(mlp.pooled)}"
                    f" and {nothing(mlp)}."
                )

    def show(self) -> None:
        """Print the table and the sentences."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        shown = range(0, self.num_steps, -(-self.num_steps // COLUMNS))
        title = f"explained variance of returns of {self.policy}, {self.images} images of {self.prompts} prompts"
        table = Table(title=escape(title))
        for name in ("proxy", "critic", "inputs", "held out"):
            table.add_column(name)
        for name in ("pooled", f"mean of 0-{self.trained_steps - 1}", *(f"step {k}" for k in shown)):
            table.add_column(name, justify="right")
        for proxy, found in self.rows.items():
            for row in found:
                values = (row.pooled, row.trained, *(row.steps[k] for k in shown))
                shares = (f"{share.value:.3f} ±{share.error:.3f}" for share in values)
                table.add_row(proxy, row.critic, row.inputs, row.held_out, *shares)
        Console(width=None if sys.stdout.isatty() else 220).print(table)  # a file has no width
        print(*self.sentences(), sep="\n")

    def write(self, path: Path) -> None:
        """Write the numbers, all or nothing, as JSON or CSV by the file's ending.

        Raises:
            UserError: where it cannot be written.
        """
        try:
            with atomic(path) as temporary:
                if path.suffix == ".csv":
                    self.table().to_csv(temporary, index=False)
                else:
                    temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write --out {path}: {error.strerror or error}") from None


def percent(share: Share) -> str:
    """Write a share with its error."""
    return f"{share.value:.1%} ± {share.error:.1%}"


def nothing(row: Explained) -> str:
    """Say at which steps a critic finds nothing."""
    empty = [str(k) for k, share in enumerate(row.steps) if not share.found]
    if len(empty) == len(row.steps):
        return "finds nothing at any step"
    if not empty:
        return "finds something at every step"
    return f"finds nothing at {'step' if len(empty) == 1 else 'steps'} {', '.join(empty)}"
