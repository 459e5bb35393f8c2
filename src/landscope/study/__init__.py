"""A study: one experiment at one scale on one data set in one store. What to do, what came out, what it says."""

from landscope.study.doing import (
    declare,
    executor_words,
    expected,
    groups,
    is_finished,
    members,
    missing_runs,
    note_sitting,
    tasks,
)
from landscope.study.finding import Study, begin, check, resume
from landscope.study.saying import compared, histories, judged_tables, report, results, verdicts

__all__ = [
    "Study",
    "begin",
    "check",
    "compared",
    "declare",
    "executor_words",
    "expected",
    "groups",
    "histories",
    "is_finished",
    "judged_tables",
    "members",
    "missing_runs",
    "note_sitting",
    "report",
    "results",
    "resume",
    "tasks",
    "verdicts",
]
