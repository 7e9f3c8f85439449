"""Warnings about rounds that went on although something in them is not as it should be."""

from __future__ import annotations

from collections.abc import Mapping

from overopt_bench.compute.optimizer import MAX_SKIPPED

ROUNDED = 0.05  # share of ratios that rounding may put outside the clip range without a warning


class Health:
    """Looks at each round's metrics and warns of each trouble once a session.

    Args:
        precision: of the run, as the configuration names it.
    """

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._warned: set[str] = set()

    def complaints(self, number: int, metrics: Mapping[str, float]) -> list[str]:
        """Tell what is wrong with a round that was right so far in this session.

        Args:
            number: of the round, from 1.
            metrics: of the round, the skipped optimizer steps among them.
        """
        outside, skipped = metrics.get("clipfrac/first", 0), metrics.get("optimizer_steps/skipped", 0)
        troubles = {}
        if outside > ROUNDED:
            troubles["rounding"] = (
                f"{outside:.0%} of ratios are outside the clip range before any update, by rounding alone"
                f" ({self._precision}); a finer --precision or a wider clip_range would mend it"
            )
        if skipped:
            troubles["skipped"] = (
                f"round {number} skipped {skipped:.0f} of its optimizer steps, for the gradient was not finite; float16"
                f" overflows now and then, {MAX_SKIPPED} in a row end the run (optimizer_steps/skipped counts them)"
            )
        new = [text for kind, text in troubles.items() if kind not in self._warned]
        self._warned |= troubles.keys()
        return new
