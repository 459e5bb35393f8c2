"""Effects as a figure: one claim under every protocol."""

import math
from collections.abc import Sequence

import numpy as np

from landscope.figures import REFERENCE, Axis, Figure, Panel, Series
from landscope.spec import Claim
from landscope.stats import Verdict, shown

LARGEST = 300.0  # of a logarithm: the ratio of a larger one cannot be drawn


def forest(verdicts: Sequence[Verdict], name: str) -> Figure | None:
    """One claim's effect under every protocol: interval, every unit's value, null, smallest effect, paper's number.

    Args:
        verdicts: The verdicts on one claim, the published protocol first.
        name: The figure's name.

    Returns:
        The figure, or None where no protocol has an effect to show.
    """
    kept = [v for v in verdicts if v.effect is not None and v.units is not None and math.isfinite(v.effect)]
    if not kept:
        return None
    claim = kept[0].weakest
    x = np.concatenate([_scaled(claim, [v.effect, *deciding(v), *_values(v)]) for v in kept])
    marks = [claim.null] + [m for m in (claim.smallest, claim.paper and claim.paper.value) if m is not None]
    shown_there = np.concatenate([x[np.isfinite(x)], _scaled(claim, marks)])
    log = claim.unit == "ratio" and float(shown_there.min()) > 0
    rows = (-0.6, len(kept) - 0.4)
    series = [*_reference(claim, rows), *(s for i, v in enumerate(kept) for s in _effect(v, i, len(kept)))]
    names = [v.control or "published protocol" for v in kept]
    ticks = (tuple(float(len(kept) - 1 - i) for i in range(len(kept))), tuple(names))
    labels = {"ratio": "ratio", "points": "difference (percentage points)", "tau": "Kendall’s τ"}
    panel = Panel(
        claim.text,
        Axis("effect: " + labels.get(claim.unit, "on the statistic’s scale"), log=log),
        Axis("protocol", ticks=ticks, limits=rows),
        tuple(series),
    )
    note = (
        "Bars: the interval that decides the verdict. Small points: one for each unit. Shaded: effects too small to "
        "matter, from no effect to the smallest of interest. A larger point without a bar has no finite interval."
    )
    return Figure(name, f"Effect under each protocol: {claim.text}", _told(kept), (panel,), note)


def _scaled(claim: Claim, values: Sequence[float | None]) -> np.ndarray:
    array = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    if claim.unit == "ratio":
        array = np.exp(np.where(np.abs(array) < LARGEST, array, np.nan))
    scaled = array * 100 if claim.unit == "points" else array
    return np.where(np.isfinite(scaled), scaled, np.nan)


def deciding(verdict: Verdict) -> tuple[float | None, float | None]:
    """The ends of the interval that decides the verdict; of the 95 % one where nothing is decided."""
    if verdict.holm_low is not None and verdict.holm_high is not None:
        return verdict.holm_low, verdict.holm_high
    return verdict.low, verdict.high


def _values(verdict: Verdict) -> Sequence[float]:
    return () if verdict.units is None else [float(v) for v in verdict.units.values]


def _reference(claim: Claim, rows: tuple[float, float]) -> list[Series]:
    ends = np.array(rows)
    null = _scaled(claim, [claim.null] * 2)
    drawn = []
    if claim.smallest is not None:
        near, far = sorted((null[0], _scaled(claim, [claim.smallest])[0]))
        nowhere = np.full(2, np.nan)
        low, high = np.full(2, near), np.full(2, far)
        drawn.append(Series("too small to matter", nowhere, ends, low, high, slot=REFERENCE, along="x"))
    drawn.append(Series("no effect", null, ends, slot=REFERENCE))
    return drawn


def _effect(verdict: Verdict, i: int, rows: int) -> list[Series]:
    claim, y = verdict.weakest, float(rows - 1 - i)
    values = _scaled(claim, _values(verdict))
    low, high = (_scaled(claim, [end]) for end in deciding(verdict))
    number = 0 if verdict.control is None else 1
    unit = verdict.units.unit if verdict.units else "unit"
    ids = tuple(f"{unit} {i}" for i in verdict.units.ids) if verdict.units else ()
    group = "controls" if verdict.control else "published protocol"
    name = verdict.control or "published protocol"
    drawn = [
        Series(
            f"{name}, each {unit}",
            values,
            np.full(len(values), y - 0.22),
            mode="points",
            slot=number,
            hover=ids if len(ids) == len(values) else None,
            group=group,
            faint=True,
        ),
        Series(
            name,
            _scaled(claim, [verdict.effect]),
            np.array([y]),
            low,
            high,
            "points",
            number,
            (_word(verdict),),
            group,
            along="x",
        ),
    ]
    if verdict.control is None and claim.paper is not None:
        paper = _scaled(claim, [claim.paper.value])
        drawn.append(Series("the paper’s number", paper, np.array([y + 0.22]), mode="points", slot=4))
    return drawn


def _told(verdicts: Sequence[Verdict]) -> str:
    """The finding of a forest plot, with its numbers."""
    told = [f"{v.control or 'published protocol'} {shown(v.weakest, v.effect or 0.0)} ({_word(v)})" for v in verdicts]
    return f"{verdicts[0].claim.text.rstrip('.')}: " + "; ".join(told) + "."


def _word(verdict: Verdict) -> str:
    unbounded = any(end is not None and math.isinf(end) for end in deciding(verdict))
    return f"{verdict.word}, n = {verdict.n}" + (", its interval unbounded" if unbounded else "")
