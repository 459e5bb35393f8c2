"""Verdicts on claims: one number per independent unit, its interval and test, and what may be said because of them.

A claim's statistic (`log_ratio`, `difference`, `trend`, `peak_height`, `configuration_correlation`) turns a table of
results into `Units`; `judge` turns those into one `Verdict` per claim and protocol. `rank_measures` asks of many
measures at once which orders configurations as an outcome does. SciPy is imported on use.
"""

from landscope.stats.exponents import exponent
from landscope.stats.inference import detectable, holm, power, sd_limit, seeds_needed, sign_flip_p
from landscope.stats.judging import decide, judge
from landscope.stats.peaks import peak_height
from landscope.stats.ranking import MeasureRecord, Ranged, Ranking, candidates, rank_measures
from landscope.stats.statistics import configuration_correlation, difference, log_ratio, trend
from landscope.stats.units import Units, Untestable
from landscope.stats.verdicts import Verdict, changed_claims, claims_fingerprint, natural, shown, shown_interval

__all__ = [
    "MeasureRecord",
    "Ranged",
    "Ranking",
    "Units",
    "Untestable",
    "Verdict",
    "candidates",
    "changed_claims",
    "claims_fingerprint",
    "configuration_correlation",
    "decide",
    "detectable",
    "difference",
    "exponent",
    "holm",
    "judge",
    "log_ratio",
    "natural",
    "peak_height",
    "power",
    "rank_measures",
    "sd_limit",
    "seeds_needed",
    "shown",
    "shown_interval",
    "sign_flip_p",
    "trend",
]
