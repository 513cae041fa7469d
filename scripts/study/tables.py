"""What became of the claims: means and ranges over seeds as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Results = Mapping[int, Mapping[str, Mapping[str, float]]]  # seed -> arm -> score -> value


def summarize(results: Results, claims: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Values of every arm in the order of the seeds, and of every claim the gaps and whether it held.

    Args:
        results: seed -> arm -> score -> value.
        claims: name -> (better arm, worse arm, score, smallest gap, text). A claim holds if the mean gap is above the
            smallest one, and so is that of two thirds of the seeds or more.
    """
    seeds = list(results)
    arms = {
        arm: {score: [results[seed][arm][score] for seed in seeds] for score in scores}
        for arm, scores in results[seeds[0]].items()
    }
    outcome = {}
    for name, (better, worse, score, margin, text) in claims.items():
        gaps = np.subtract(arms[better][score], arms[worse][score])
        held = bool(gaps.mean() > margin and (gaps > margin).sum() * 3 >= 2 * len(gaps))
        outcome[name] = {"claim": text, "score": score, "margin": margin, "gaps": gaps.round(4).tolist(), "held": held}
    return {"seeds": seeds, "arms": arms, "claims": outcome}


def to_markdown(summary: Mapping[str, Any], arms: Mapping[str, str], scores: Mapping[str, str]) -> str:
    """The two tables, means over seeds with the range in brackets.

    Args:
        summary: of :func:`summarize`.
        arms: arm -> what it is.
        scores: score -> heading of its column.
    """

    def cell(numbers: Sequence[float]) -> str:
        if np.isnan(numbers).all():  # an arm that the score is not about
            return "–"
        return f"{np.mean(numbers):.3f} ({min(numbers):.3f} to {max(numbers):.3f})"

    lines = [
        f"Seeds {', '.join(map(str, summary['seeds']))}: mean (range).",
        "",
        f"| arm | what | {' | '.join(scores.values())} |",
        "| --- " * (len(scores) + 2) + "|",
    ]
    for arm, values in summary["arms"].items():
        lines.append(f"| {arm} | {arms[arm]} | {' | '.join(cell(values[score]) for score in scores)} |")
    lines += ["", "| claim | | gap per seed | above | held |", "| --- | --- | --- | --- | --- |"]
    for name, claim in summary["claims"].items():
        gaps = ", ".join(f"{gap:+.3f}" for gap in claim["gaps"])
        held = "yes" if claim["held"] else "no"
        lines.append(f"| {name} | {claim['claim']} | {gaps} | {claim['margin']:g} | {held} |")
    return "\n".join(lines) + "\n"
