"""When to stop: how a score grows with the number of labels, and what further ones would add."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import InputError
from common.files import write_atomically, write_json
from common.page import Section, Table, Tile, write_html_report
from common.pictures import CHART, GRID, MUTED, PREDICTION_COLOR, Picture
from common.report import number
from datalists.sources import read_table, refuse_without

EXPONENTS = np.geomspace(0.05, 4.0, 400)
CEILING = 1.0  # no Dice is above
LEVEL = 0.95
LEAST_NUMBERS = 3  # of labels: a power law has three parameters
UNITS = ("subject", "fold", "draw", "seed")  # columns that say which scores go together
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


class Scores(NamedTuple):
    """Scores by number of labels.

    Attributes:
        labels: (N,), how many labels the method had learned from.
        scores: (N,), from 0 to 1, higher is better.
        units: (N,), what is resampled as one: the person that was scored, or the fold and the draw.
        unit: what the units are, for the page.
    """

    labels: np.ndarray
    scores: np.ndarray
    units: np.ndarray
    unit: str


class PowerLaw(NamedTuple):
    """score(n) = limit - loss * n ** -exponent.

    Attributes:
        limit: that is reached with no end of labels, at most :data:`CEILING`.
        loss: what one label lacks of it, 0 or more.
        exponent: how fast that shrinks.
    """

    limit: float
    loss: float
    exponent: float

    def at(self, labels: Any) -> Any:
        """Score with so many labels."""
        return self.limit - self.loss * np.asarray(labels, dtype=float) ** -self.exponent


class Curve(NamedTuple):
    """A fitted learning curve.

    Attributes:
        fit: of all scores.
        draws: fits of resampled scores.
        scores: what it was fitted to.
        now: number of labels that gains are counted from.
        skipped: resamples that had fewer than three numbers of labels.
    """

    fit: PowerLaw
    draws: list[PowerLaw]
    scores: Scores
    now: int
    skipped: int

    def gain(self, more: int) -> tuple[float, float, float]:
        """What ``more`` labels add to the score, with the bounds of its interval."""
        values = [law.at(self.now + more) - law.at(self.now) for law in self.draws]
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(self.fit.at(self.now + more) - self.fit.at(self.now)), float(low), float(high)

    def band(self, labels: np.ndarray) -> np.ndarray:
        """Interval of the score, (2, N), at numbers of labels (N,)."""
        return np.quantile([law.at(labels) for law in self.draws], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)

    def sentence(self, more: int) -> str:
        """As "four more labels: +0.02 (0.00 to 0.05)"."""
        count = WORDS[more] if more < len(WORDS) else str(more)
        gain, low, high = self.gain(more)
        return f"{count} more label{'s' if more > 1 else ''}: {gain:+.2f} ({low:.2f} to {high:.2f})"


def read_scores(path: str | Path) -> Scores:
    """Scores of a table with the columns ``labels`` and ``score``, see :func:`datalists.sources.read_table`.

    Further columns say which scores go together: ``subject``, the person that was scored, or else ``fold``, ``draw``
    and ``seed`` of the training. Without any, each row stands alone.

    Raises:
        InputError: as there, or if a value is none, or there are fewer than three numbers of labels.
    """
    lines = read_table(path)
    refuse_without(("labels", "score"), lines, path)
    rows = [row for _, row in lines]
    labels, scores = [], []
    for line, row in lines:
        labels.append(_number(row["labels"], f"labels in line {line} of {path}", 1, np.inf, whole=True))
        scores.append(_number(row["score"], f"score in line {line} of {path}", 0, CEILING))
    named = ["subject"] if "subject" in rows[0] else [name for name in UNITS if name in rows[0]]
    units = ["/".join(row[name] for name in named) or str(i) for i, row in enumerate(rows)]
    found = Scores(np.array(labels), np.array(scores), np.array(units), " and ".join(named) or "row")
    refuse_few(found.labels, str(path))
    return found


def refuse_few(labels: np.ndarray, path: str) -> None:
    """Raise InputError with fewer than :data:`LEAST_NUMBERS` different numbers of labels."""
    different = np.unique(labels)
    if len(different) < LEAST_NUMBERS:
        raise InputError(
            f"{path}: scores at {' and '.join(f'{n:g}' for n in different)} labels, expected at {LEAST_NUMBERS} "
            "or more different numbers, as 1, 2, 4 and 8: a curve through fewer says nothing"
        )


def fit_power_law(labels: np.ndarray, scores: np.ndarray) -> PowerLaw:
    """Least squares over all scores, with a limit of at most 1 and a loss of at least 0.

    For a given exponent the law is a straight line in ``n ** -exponent``, which is solved for; the exponent is the best
    of :data:`EXPONENTS`. Where scores do not grow the loss is 0, and the exponent 1.

    Args:
        labels, scores: (N,).

    Reference:
        Hestness et al., "Deep learning scaling is predictable, empirically", 2017, and Figueroa et al., "Predicting
        sample size required for classification performance", BMC Medical Informatics and Decision Making 2012, on power
        laws with a limit as learning curves.
    """
    labels, scores = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    x = labels[None] ** -EXPONENTS[:, None]
    middle = x.mean(1, keepdims=True)
    loss = -((x - middle) * (scores - scores.mean())).sum(1) / ((x - middle) ** 2).sum(1)
    loss = loss.clip(min=0)
    limit = scores.mean() + loss * middle[:, 0]
    over = limit > CEILING
    loss = np.where(over, ((CEILING - scores) * x).sum(1) / (x**2).sum(1), loss).clip(min=0)
    limit = np.where(over, CEILING, limit)
    error = ((scores - limit[:, None] + loss[:, None] * x) ** 2).sum(1)
    best = int(error.argmin())
    if loss[best] == 0:
        return PowerLaw(float(limit[best]), 0.0, 1.0)
    return PowerLaw(float(limit[best]), float(loss[best]), float(EXPONENTS[best]))


def fit_curve(scores: Scores, now: int | None = None, resamples: int = 1000, seed: int = 0) -> Curve:
    """A power law with a percentile bootstrap over the units.

    Args:
        scores: of :func:`read_scores`.
        now: labels that there are; by default the largest number with a score.
        resamples, seed: of the bootstrap.

    Raises:
        InputError: if there are fewer than two units, of which nothing can be drawn.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap", 1993. With fewer than about ten units such an interval
        is too narrow.
    """
    names, index = np.unique(scores.units, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"all scores are of one {scores.unit}, {names[0]}, expected two or more for an interval")
    members = [np.flatnonzero(index == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    draws, skipped = [], 0
    for _ in range(resamples):
        rows = np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))])
        if len(np.unique(scores.labels[rows])) < LEAST_NUMBERS:
            skipped += 1
            continue
        draws.append(fit_power_law(scores.labels[rows], scores.scores[rows]))
    if len(draws) < resamples / 2:
        raise InputError(
            f"{skipped} of {resamples} resamples have fewer than {LEAST_NUMBERS} numbers of labels, expected scores of "
            f"each {scores.unit} at several numbers"
        )
    now = int(scores.labels.max()) if now is None else now
    return Curve(fit_power_law(scores.labels, scores.scores), draws, scores, now, skipped)


def advice_of(curve: Curve, more: int, worthwhile: float) -> str:
    """Whether to go on, in one sentence."""
    _, low, high = curve.gain(more)
    if high < worthwhile:
        return f"Even at best {more} more add less than {worthwhile:g}: further labels of this kind hardly pay."
    if low >= worthwhile:
        return f"{more} more are expected to add {worthwhile:g} or more: go on."
    return f"Whether {more} more add {worthwhile:g} cannot be told from these scores: {low:.2f} to {high:.2f}."


def as_dict(curve: Curve, more: int, worthwhile: float) -> dict[str, Any]:
    """The curve for JSON; :func:`section_of` makes the page of it."""
    numbers = np.unique(curve.scores.labels)
    grid = np.unique(np.geomspace(numbers.min(), curve.now + 2 * more, 40).round(3))
    band = curve.band(grid)
    gain, low, high = curve.gain(more)
    return {
        "law": curve.fit._asdict(),
        "labels_now": curve.now,
        "more": more,
        "gain": {"mean": gain, "low": low, "high": high},
        "sentence": curve.sentence(more),
        "advice": advice_of(curve, more, worthwhile),
        "units": {"of": curve.scores.unit, "count": len(np.unique(curve.scores.units))},
        "resamples": {"used": len(curve.draws), "skipped": curve.skipped},
        "points": [
            {"labels": int(n), "mean": float(s.mean()), "scores": [float(v) for v in np.sort(s)]}
            for n in numbers
            for s in [curve.scores.scores[curve.scores.labels == n]]
        ],
        "line": [[float(v) for v in row] for row in zip(grid, curve.fit.at(grid), *band, strict=True)],
    }


def chart_of(content: dict[str, Any]) -> Picture:
    """Scores, their means, the law and its interval, as PNG, of what :func:`as_dict` gives."""
    figure = Figure(figsize=(4.4, 3.4), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels, law, low, high = np.array(content["line"]).T
    axes.fill_between(labels, low, high, color=CHART, alpha=0.15, linewidth=0)
    axes.plot(labels, law, color=CHART, linewidth=2)
    for point in content["points"]:
        axes.plot([point["labels"]] * len(point["scores"]), point["scores"], "o", color=MUTED, markersize=3, alpha=0.4)
        axes.plot(point["labels"], point["mean"], "D", color=PREDICTION_COLOR, markersize=7)
    axes.axvline(content["labels_now"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log", base=2)
    ticks = sorted({point["labels"] for point in content["points"]} | {content["labels_now"] + content["more"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="labels", ylabel="score", title=content["sentence"])
    axes.title.set_fontsize(10)
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    out = BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    caption = (
        f"Every score (gray), means (orange), power law with its {100 * LEVEL:.0f} % interval; dashed: labels now."
    )
    return Picture(out.getvalue(), caption, "Learning curve")


def section_of(content: dict[str, Any]) -> Section:
    """The learning curve as a section of a page."""
    law, units = content["law"], content["units"]
    rows = [
        [
            str(p["labels"]),
            number(p["mean"], 3),
            number(float(law["limit"] - law["loss"] * p["labels"] ** -law["exponent"]), 3),
            str(len(p["scores"])),
        ]
        for p in content["points"]
    ]
    narrow = " With fewer than ten of them the interval is too narrow." if units["count"] < 10 else ""
    return Section(
        title="When to stop",
        lead=f"{content['sentence'].capitalize()}. {content['advice']}",
        tiles=[
            Tile("labels now", str(content["labels_now"])),
            Tile("limit of the law", number(law["limit"], 3), "with no end of labels"),
        ],
        charts=[chart_of(content)],
        tables=[Table("Scores", ["labels", "mean score", "law", "scores"], rows)],
        definitions=[
            (
                "law",
                "score = limit - loss * labels ^ -exponent, by least squares. The interval is of a bootstrap over "
                f"{units['count']} of {units['of']}.{narrow} What lies beyond the last number of labels is a guess.",
            )
        ],
    )


def _number(text: str, where: str, low: float, high: float, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high or (whole and value != round(value)):
        kind = f"a whole number of {low:g} or more" if whole else f"a number from {low:g} to {high:g}"
        raise InputError(f"{where} is {text[:40]!r}, expected {kind}")
    return value


def write_curve(
    path: str | Path,
    output_dir: str | Path,
    more: int,
    now: int | None = None,
    worthwhile: float = 0.01,
    resamples: int = 1000,
    seed: int = 0,
) -> str:
    """Write ``learning_curve.json``, ``.png`` and ``.html`` of a table of scores; gives what it says as text."""
    curve = fit_curve(read_scores(path), now, resamples, seed)
    content = as_dict(curve, more, worthwhile)
    folder = Path(output_dir)
    chart = chart_of(content)
    write_json(folder / "learning_curve.json", content)
    write_atomically(folder / "learning_curve.png", lambda part: part.write_bytes(chart.data))
    write_html_report(folder / "learning_curve.html", "When to stop", [section_of(content)])
    return f"{content['sentence']}\n{content['advice']}\nwrote {folder / 'learning_curve.html'}"
