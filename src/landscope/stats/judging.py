"""Judging: from claims and tables of results to verdicts, by one decision that is the same for every claim."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from landscope.spec import Claim
from landscope.stats.inference import MOST_SEEDS, holm, sd_limit, seeds_needed, sign_flip_p
from landscope.stats.units import Units, Untestable
from landscope.stats.verdicts import Verdict, shown, shown_interval
from landscope.types import Table

ALPHA = 0.05  # of a family: the primary claims of an experiment under one protocol
UPWARD = ("greater", "trend_up", "at_least")
EXPLORATORY = ("exploratory", "the claim is not among the primary ones")
TOLERATED = 0.1  # the share of an arm's runs that may be censored (or, for "supported", diverged)


def decide(
    expect: str,
    interval: tuple[float, float],
    *,
    null: float = 0.0,
    smallest: float | None = None,
    margin: float | None = None,
    inner: tuple[float, float] | None = None,
) -> tuple[str, str]:
    """The verdict that an interval allows, as (word, why).

    Args:
        expect: What the claim says of the effect: greater, less, at_least, at_most, within, trend_up or trend_down.
        interval: The two-sided interval, at the level that decides.
        null: The value at which the claim is false (for within: the centre).
        smallest: The smallest effect of interest, on the claimed side of null. An interval that ends before it is
            a finding: the claim is contradicted as *too small*, or supported yet *negligible*.
        margin: For within: the half-width of equivalence.
        inner: For within: the interval at twice the significance level, which is two one-sided tests at the level.

    >>> decide("greater", (0.2, 0.9), smallest=0.5), decide("greater", (-0.2, 0.3), smallest=0.5)
    (('supported', ''), ('contradicted', 'too small'))
    >>> decide("greater", (-0.2, 0.9), smallest=0.5), decide("less", (0.2, 0.9))
    (('inconclusive', ''), ('contradicted', 'reversed'))
    """
    low, high = interval
    if expect == "within":
        if margin is None or inner is None:
            raise ValueError("within is decided from a margin and the inner interval of two one-sided tests")
        if null - margin < inner[0] and inner[1] < null + margin:
            return "supported", ""
        return ("contradicted", "outside") if low > null + margin or high < null - margin else ("inconclusive", "")
    if expect in ("at_least", "at_most"):
        smallest = None  # a margin is kept or broken; there is no third way
    if expect in ("less", "trend_down", "at_most"):  # the mirror image of greater
        low, high, null, smallest = -high, -low, -null, None if smallest is None else -smallest
    if low > null:
        return "supported", "negligible" if smallest is not None and high < smallest else ""
    if high < null:
        return "contradicted", "reversed"
    return ("contradicted", "too small") if smallest is not None and high < smallest else ("inconclusive", "")


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What a table has to say on a claim, before the other claims of its family are heard."""

    claim: Claim
    units: Units | None = None
    word: str | None = None  # set where no decision is to be made
    reason: str = ""
    parts: tuple["_Evidence", ...] = ()

    @property
    def weakest(self) -> "_Evidence":
        return max(self.parts, key=lambda part: part.p_for).weakest if self.parts and self.word is None else self

    @property
    def p(self) -> float:
        """The p value that enters the family: every claim may fail on either side, a conjunction only on one."""
        if self.parts or self.claim.expect == "within":
            return self.p_for
        return self.units.p(self.claim.null) if self.units else 1.0

    @property
    def p_for(self) -> float:
        """The p value of the claim being false, doubled where it is one-sided: at most alpha where supported."""
        if self.parts:
            return max(part.p_for for part in self.parts)
        if self.units is None:
            return 1.0
        null, margin = self.claim.null, self.claim.margin or 0.0
        if self.claim.expect == "within":
            return max(self.units.p(null - margin, "greater"), self.units.p(null + margin, "less"))
        return min(1.0, 2 * self.units.p(null, "greater" if self.claim.expect in UPWARD else "less"))


def judge(
    claims: Sequence[Claim],
    tables: Mapping[str, Table],
    planned: int,
    published: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
) -> list[Verdict]:
    """One verdict per protocol and claim, protocol by protocol.

    The family that Holm's correction spans is the primary claims under one protocol, whether they can be tested or
    not. Only planned seeds decide: looking again after every few seeds would find something sooner or later.

    Args:
        claims: The claims, fixed beforehand.
        tables: Each protocol's results at the step that is judged.
        planned: The number of seeds planned: seeds 0 to ``planned`` - 1 are judged, all others ignored.
        published: The protocol that is the paper's own, the first one if None.
        seeds: Judge these seeds instead: a later block, as a replication on its own.

    Raises:
        LookupError: where ``published`` is not among the tables, or a claim names a column that there is not.
    """
    published = next(iter(tables), None) if published is None else published
    if published not in tables:
        raise LookupError(f"there is no protocol {published!r}, only {', '.join(tables) or 'none'}")
    judged = tuple(range(planned)) if seeds is None else tuple(seeds)
    verdicts = []
    for protocol, table in tables.items():
        control = None if protocol == published else protocol
        kept = table.where(seed=judged) if "seed" in table.columns else table
        evidence = [_gather(claim, kept, judged) for claim in claims]
        family = [e for e in evidence if e.claim.primary]
        adjusted, levels = holm([1.0 if e.word else e.p for e in family], ALPHA)
        corrected = {id(e): (float(p), float(a)) for e, p, a in zip(family, adjusted, levels, strict=True)}
        for e in evidence:
            p, alpha = corrected.get(id(e), (None, ALPHA))
            verdicts.append(_verdict(e, protocol, control, p, alpha, len(family)))
    return verdicts


def _gather(claim: Claim, table: Table, seeds: Sequence[int]) -> _Evidence:
    if claim.parts:
        parts = tuple(_gather(replace(part, primary=claim.primary), table, seeds) for part in claim.parts)
        blocked = sorted(
            (p for p in parts if p.word not in (None, "exploratory")), key=lambda p: p.word == "descriptive"
        )
        word, reason = (blocked[0].word, blocked[0].reason) if blocked else (None, "")
        if word is None and not claim.primary:
            word, reason = EXPLORATORY
        return _Evidence(claim, None, word, reason, parts)
    if not len(table):
        return _Evidence(claim, None, "not testable", "no run is finished yet")
    if claim.statistic is None:
        raise ValueError(f"{claim.text!r} has neither a statistic nor parts")
    try:
        units = claim.statistic(table)
    except Untestable as error:
        return _Evidence(claim, None, "not testable", str(error))
    if missing := _missing(units, seeds):
        return _Evidence(claim, None, "not testable", missing)  # half an experiment's effect is not to be looked at
    word, reason = _blocked(claim, units)
    return _Evidence(claim, units, word, reason)


def _missing(units: Units, seeds: Sequence[int]) -> str:
    expected = units.arms * len(seeds) if units.unit in ("seed", "configuration") else units.found
    if units.found < expected:
        return f"{expected - units.found} of {expected} runs are missing"
    absent = [seed for seed in seeds if seed not in units.ids] if units.unit == "seed" and not units.arms else []
    return f"{len(absent)} of {len(seeds)} seeds are missing" if absent else ""


def _blocked(claim: Claim, units: Units) -> tuple[str | None, str]:
    """Why a claim gets no decision, as (word, reason), or (None, "")."""
    for arm, share in units.censored.items():
        if share > TOLERATED:
            return (
                "not testable",
                f"{share:.0%} of the runs with {arm} never reach the step at which the arms are compared",
            )
    if not claim.primary:
        return EXPLORATORY if units.n else ("not testable", units.note or f"no {units.unit} meets its condition")
    if units.n < units.least:
        many = f"{units.unit} is" if units.n == 1 else f"{units.unit}s are"
        return "descriptive", f"{units.n} {many} too few for a verdict, which needs at least {units.least}"
    return None, ""


def _decision(evidence: _Evidence, alpha: float, whole: bool = False) -> tuple[str, str]:
    """The word and why at significance level ``alpha``, on all units or on those ``whole``, without diverged runs."""
    if evidence.parts:
        # Intersection and union: all parts must hold, and one that is contradicted contradicts them together.
        found = [_decision(part, alpha, whole) for part in evidence.parts]
        if all(word == "supported" for word, _ in found):
            return "supported", ""
        return next((one for one in found if one[0] == "contradicted"), ("inconclusive", ""))
    claim, units = evidence.claim, evidence.units
    if units is None or units.n < 2:
        return "not testable", ""
    if whole and not units.whole_marks.all():
        return _decision(replace(evidence, units=units.whole), alpha)
    word, why = decide(
        claim.expect,
        units.interval(1 - alpha),
        null=claim.null,
        smallest=claim.smallest,
        margin=claim.margin,
        inner=units.interval(1 - 2 * alpha),
    )
    many = max(units.diverged.values(), default=0.0)
    return ("inconclusive", "many diverged") if word == "supported" and many > TOLERATED else (word, why)


def _verdict(
    evidence: _Evidence, protocol: str, control: str | None, p_adjusted: float | None, alpha: float, family: int
) -> Verdict:
    claim, weakest = evidence.claim, evidence.weakest
    parts = tuple(_verdict(part, protocol, control, None, alpha, family) for part in evidence.parts)
    bare = Verdict(claim, protocol, control, evidence.word or "", evidence.reason, family=family, parts=parts)
    if weakest.units is None or weakest.units.n < 1:
        return bare
    units, shape = weakest.units, weakest.claim
    low, high = units.interval(0.95)
    with_numbers = replace(
        bare,
        effect=units.mean,
        low=low,
        high=high,
        n=units.n,
        units=units,
        extra=dict(units.extra),
        prediction=_prediction(claim, units) if control is None else None,
    )
    if evidence.word is not None:
        return with_numbers
    word, why = _decision(evidence, alpha)
    without = _decision(evidence, alpha, whole=True)[0] if _touched(evidence) else None
    if without is not None and without != word:
        word, why = "inconclusive", "diverged runs decide"
    tost = word == "supported" and shape.expect == "within"  # then the interval at twice the level has decided
    level = 1 - 2 * alpha if tost else 1 - alpha
    holm_low, holm_high = units.interval(level)
    advice = _advice(shape, units, alpha)
    return replace(
        with_numbers,
        word=word,
        reason=_reason(shape, units, word, why, (holm_low, holm_high)),
        p=evidence.p,
        p_exact=_exact(shape, units),
        holm_low=holm_low,
        holm_high=holm_high,
        holm_level=level,
        p_adjusted=p_adjusted,
        without_diverged=without,
        negligible=why == "negligible",
        why=why if why in ("negligible", "reversed", "too small") else "",
        **advice,
    )


def _touched(evidence: _Evidence) -> bool:
    """Whether a diverged run is in any of the units."""
    if evidence.parts:
        return any(_touched(part) for part in evidence.parts)
    return evidence.units is not None and not evidence.units.whole_marks.all()


def _exact(claim: Claim, units: Units) -> float | None:
    page = {"trend_up": "page p rising", "trend_down": "page p falling"}.get(claim.expect)
    if page is not None and page in units.extra:
        return units.extra[page]
    if units.draws is not None or units.added or claim.expect == "within":
        return None  # signs flip with the units alone: what they share is not tested by it
    return sign_flip_p(units.values - claim.null)


def _prediction(claim: Claim, units: Units) -> tuple[float, float, bool] | None:
    """Where the paper's mean is expected: what was added for a shared test set is left out, for the paper shares it."""
    if claim.paper is None or claim.parts or units.n < 2 or units.draws is not None:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(units.n - 1, 0.975)) * units.sd * math.sqrt(1 / units.n + 1 / claim.paper.n)
    low, high = units.mean - half, units.mean + half
    return low, high, low <= claim.paper.value <= high


def _advice(claim: Claim, units: Units, alpha: float) -> dict[str, Any]:
    """How many seeds it takes, from the upper limit of their spread and effects that were fixed beforehand."""
    if units.draws is not None or units.unit != "seed":
        return {"seeds_note": "not computed: the unit is not a seed"}
    sd = sd_limit(units.sd, units.n)
    paper = (
        seeds_needed(claim.paper.value - claim.null, sd, alpha, added=units.added)
        if claim.paper and claim.expect != "within"
        else None
    )
    if claim.expect == "within" and claim.margin is not None:
        # Each of the two one-sided tests must fail in no more than half of the tolerated cases.
        needed = seeds_needed(claim.margin, sd, alpha, wanted=0.9, sides=1, added=units.added)
        of = f"{shown(claim, claim.null)} to be told from the margin"
    elif (target := _target(claim)) is not None:
        needed = seeds_needed(target - claim.null, sd, alpha, added=units.added)
        of = f"{shown(claim, target)} to be told from {shown(claim, claim.null)}"
    else:
        note = "not computed: the claim names no smallest effect of interest"
        return {"seeds_needed_paper": paper, "seeds_note": note}
    how = f"{needed} seeds" if needed is not None else f"more than {MOST_SEEDS:,} seeds"
    note = f"{how} for {of} with 80 % power, going by the upper 80 % limit of the spread seen"
    return {"seeds_needed": needed, "seeds_needed_paper": paper, "seeds_note": note}


def _target(claim: Claim) -> float | None:
    """The effect that the claim should be able to see: the smallest of interest; no effect at all, within a margin."""
    inside = claim.null < 0 if claim.expect == "at_least" else claim.null > 0
    unharmed = 0.0 if claim.expect in ("at_least", "at_most") and inside else None
    return unharmed if claim.smallest is None else claim.smallest


def _reason(claim: Claim, units: Units, word: str, why: str, interval: tuple[float, float]) -> str:
    null, held = shown(claim, claim.null), shown_interval(claim, *interval)
    smallest = "" if claim.smallest is None else shown(claim, claim.smallest)
    side = "above" if claim.expect in UPWARD else "below"
    margin = "" if claim.margin is None else shown_interval(claim, claim.null - claim.margin, claim.null + claim.margin)
    reason = {
        "negligible": f"the deciding interval {held} lies {side} {null}, but is negligible (short of {smallest})",
        "reversed": f"the effect is reversed: the deciding interval {held} lies on the other side of {null}",
        "too small": f"the effect is too small: the deciding interval {held} ends short of {smallest}",
        "outside": f"the deciding interval {held} lies outside the margin {margin}",
        "many diverged": "more than 10 % of an arm’s runs diverged",
        "diverged runs decide": "the verdict turns on how diverged runs are counted",
    }.get(why)
    if reason is None and claim.expect == "within":
        reason = f"the deciding interval {held} lies within {margin}" if word == "supported" else None
        reason = reason or f"the deciding interval {held} reaches across the margin {margin}"
    elif reason is None:
        verb = "lies" if word == "supported" else "does not lie"
        reason = f"the deciding interval {held} {verb} {side} {null}"
        reason += f", and reaches {smallest}" if word != "supported" and smallest else ""
    return reason + (f" ({units.note})" if units.note else "")
