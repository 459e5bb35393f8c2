"""The facts of a report, gathered by somebody else, and the same facts as JSON for programs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from landscope.figures import Figure
from landscope.spec import Experiment
from landscope.stats import Verdict
from landscope.types import Table


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that a report says.

    Args:
        name: The experiment's name on the command line.
        experiment: The experiment.
        scale: smoke, laptop or paper.
        data: The data set, as it was named.
        seeds: How many seeds were planned: 0 to ``seeds - 1``.
        verdicts: What `landscope.stats.judge` said, the published protocol first.
        tables: By protocol, the results at the judged step: what `judge` was given.
        figures: What the experiment draws.
        runs: By protocol, the keys of the runs behind its numbers.
        counts: By protocol, how many runs are planned, done, diverged, censored, missing.
        command: The exact command that makes these numbers again.
        environment: Versions, processor, operating system: for people, not part of the JSON.
        plan: What was planned (executor, checks), in words.
        post_hoc: Texts of claims that changed after the first judging run.
        replication: Verdicts on a second block of seeds, judged alone.
        replication_seeds: Which seeds those are, in words.
        version: Landscope's.
        arms: The column whose values are the arms that claims compare.
    """

    name: str
    experiment: Experiment
    scale: str
    data: str
    seeds: int
    verdicts: Sequence[Verdict]
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    plan: Mapping[str, str] = field(default_factory=dict)
    post_hoc: Collection[str] = ()
    replication: Sequence[Verdict] = ()
    replication_seeds: str = ""
    version: str = ""
    arms: str = "batch_size"

    def __post_init__(self) -> None:
        """Refuse two figures of one name: their files would overwrite each other."""
        names = [figure.name for figure in self.figures]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"figures have different names; there are several called {', '.join(twice)}")


def to_json(report: Report) -> dict[str, Any]:
    """The facts as JSON values; numbers are on the scale of each claim's statistic (``unit`` says how to show them).

    ``claims`` has one entry per primary claim and protocol with at least ``text, effect, low, high, p_adjusted,
    verdict, paper, n, control``; low and high are the 95 % interval, and the verdict is supported, contradicted,
    inconclusive or not testable (results that are only described are not testable, and their reason says why).
    ``exploratory`` and ``positive_controls`` hold those claims alike. What differs between machines is left out.
    """
    paper = report.experiment.paper
    claimed = [v for v in report.verdicts if v.claim.primary and not v.claim.positive]
    exploratory = [v for v in report.verdicts if not v.claim.primary]
    positive = [v for v in report.verdicts if v.claim.primary and v.claim.positive]
    return {
        "experiment": report.name,
        "title": report.experiment.title,
        "scale": report.scale,
        "data": report.data,
        "seeds": report.seeds,
        "paper": {k: getattr(paper, k) for k in ("key", "title", "authors", "year", "url")},
        "claims": [_claim_json(v, report) for v in claimed],
        "exploratory": [_claim_json(v, report) for v in exploratory],
        "positive_controls": [_claim_json(v, report) for v in positive],
        "replication": [_claim_json(v, report) for v in report.replication],
        "counts": {protocol: dict(counts) for protocol, counts in report.counts.items()},
        "runs": {protocol: list(keys) for protocol, keys in report.runs.items()},
        "figures": [{"name": f.name, "title": f.title, "finding": f.finding} for f in report.figures],
        "command": report.command,
    }


def _claim_json(verdict: Verdict, report: Report) -> dict[str, Any]:
    facts = verdict.to_json() | {"post_hoc": verdict.claim.text in report.post_hoc}
    return facts | {"verdict": "not testable"} if verdict.word == "descriptive" else facts
