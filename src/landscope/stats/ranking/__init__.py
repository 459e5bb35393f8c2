"""Ranks measures by how well their order over configurations agrees with that of an outcome."""

from landscope.stats.ranking.columns import OUTCOMES, candidates
from landscope.stats.ranking.configurations import Configurations, configurations, is_setting
from landscope.stats.ranking.measures import rank_measures
from landscope.stats.ranking.records import MeasureRecord, Ranged, Ranking, Worst

__all__ = [
    "OUTCOMES",
    "Configurations",
    "MeasureRecord",
    "Ranged",
    "Ranking",
    "Worst",
    "candidates",
    "configurations",
    "is_setting",
    "rank_measures",
]
