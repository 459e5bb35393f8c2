"""The reproduction record: what it says, what it keeps, and the scoreboard that is read from it."""

import dataclasses
import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import made_up
import pytest
from typer.testing import CliRunner

from landscope import report as reports
from landscope import store, study
from landscope.cli import app, running
from landscope.report import Report, to_markdown
from landscope.stats import judge, shown, shown_interval
from landscope.study.saying import _took

ENVIRONMENT = {"date": "2026-01-02", "torch": "2.13.0", "system": "Linux-1.2", "wall time": "4 min 0 s"}
LINE = made_up.claims()[0].text


@pytest.fixture(scope="module")
def report() -> Report:
    plan = {"data": "digits: 1,437 training samples", "fingerprint": "0123456789abcdef"}
    return made_up.report(environment=ENVIRONMENT, plan=plan, post_hoc=(made_up.claims()[1].text,))


@pytest.fixture(scope="module")
def text(report) -> str:
    return to_markdown(report)


@pytest.fixture(scope="module")
def scoreboard(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("scoreboard", root / "docs/scoreboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text: str, heading: str) -> list[list[str]]:
    """The table under a heading."""
    (block,) = re.findall(rf"^### {heading}\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]


def test_the_record_says_how_it_was_made(report, text):
    facts = ("date: 2026-01-02", "seeds: 0 to 9", "0123456789abcdef", "torch: 2.13.0", "wall time: 4 min 0 s")
    for said in (report.experiment.title, f"`{report.command}`", *facts, report.experiment.deviations[0]):
        assert said in text
    assert "Linux-1.2" not in text
    assert f"Post hoc, changed since it was declared: {made_up.claims()[1].text}." in text
    assert to_markdown(report) == text


def test_verdicts_stand_claim_by_protocol(report, text):
    names, _, *body = rows(text, "Verdicts")
    assert names == ["claim", "paper", *made_up.PROTOCOLS]
    assert [row[0].removesuffix(" (post hoc)") for row in body] == [claim.text for claim in made_up.claims()]
    (first,) = (v for v in report.verdicts if v.claim.text == LINE and v.control is None)
    assert first.prediction is not None
    assert body[0][1] == f"×11.58 (n = 1, {'inside' if first.prediction[2] else 'outside'})"
    assert body[1][0].endswith(" (post hoc)")
    for verdict in (v for v in report.verdicts if v.claim.text == LINE and not v.claim.positive):
        cell = body[0][names.index(verdict.protocol)]
        assert cell.startswith(f"**{verdict.word}**")
        assert shown(verdict.claim, verdict.effect) in cell
        assert shown_interval(verdict.claim, verdict.holm_low, verdict.holm_high) in cell
        usual = f"95 %: {shown_interval(verdict.claim, verdict.low, verdict.high)}"
        assert (usual in cell) == (verdict.holm_level != pytest.approx(0.95))


def test_arms_have_means_with_intervals(report, text):
    assert "**published, by batch size**" not in text  # the made-up figures have quantities in their panels
    panels = [dataclasses.replace(p, title="published") for p in report.figures[1].panels]
    figures = (dataclasses.replace(report.figures[1], panels=tuple(panels)),)
    block = to_markdown(dataclasses.replace(report, figures=figures)).partition("**published, by batch size**\n\n")[2]
    header, _, *body = block.partition("\n\n")[0].splitlines()
    assert (
        header
        == "| network | batch size | top Hessian eigenvalue of the training loss, geometric mean | test accuracy |"
    )
    assert len(body) == len(made_up.SIZES) * len(made_up.PROTOCOLS)
    assert all(re.search(r"\| (\S+) \((\S+) to (\S+)\) \|", line) for line in body)
    first = made_up.tables()["published"]
    mean = sum(first.where(batch_size=8)["test_accuracy"]) / 10
    assert f"| {mean:.3g} (" in next(line for line in body if line.startswith("| 8 |") or "| 8 |" in line)


def test_one_data_set_leaves_the_others_as_they_are(report, text):
    other = dataclasses.replace(report, data="mnist")
    both = to_markdown(other, text)
    assert both.count("## mnist, laptop scale") == both.count("## digits, laptop scale") == 1
    assert both.index("## digits") < both.index("## mnist")  # the experiment's own set comes first
    assert to_markdown(report, to_markdown(other)) == both
    assert to_markdown(report, both) == both
    assert both.count("## Deviations from the paper") == 1


def test_another_file_is_not_overwritten(report):
    with pytest.raises(ValueError, match="no record of johannsen2026_batch_size"):
        to_markdown(report, "# Notes\n")
    with pytest.raises(ValueError, match="no record of another"):
        to_markdown(dataclasses.replace(report, name="another"), to_markdown(report))


def test_what_came_from_elsewhere_breaks_no_table(report):
    claim = dataclasses.replace(made_up.claims()[0], text="a | b\n<script>\u202e")
    verdicts = judge([claim], report.tables, 10)
    text = to_markdown(dataclasses.replace(report, verdicts=verdicts, figures=()))
    assert "<script" not in text
    assert len({line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| a")}) == 1


def test_a_bare_report_is_a_record_too():
    bare = made_up.report(tables={}, figures=(), runs={}, counts={}, environment={}, plan={}, verdicts=())
    assert "No claim is judged." in to_markdown(bare)


# --- what a sitting took ------------------------------------------------------------------------------------------


def test_sittings_are_kept_beside_the_plan(tmp_path):
    plan = {"experiment": "x"}
    assert store.sittings(tmp_path, plan) == []
    store.declare(tmp_path, plan, {})
    for seconds in (1.5, 2.5):
        store.add_sitting(tmp_path, plan, {"seconds": seconds})
    assert [s["seconds"] for s in store.sittings(tmp_path, plan)] == [1.5, 2.5]
    (path,) = tmp_path.glob("plans/*/environment.json")
    path.write_bytes(path.read_bytes().replace(b"2.5", b"9.5"))
    assert [damage.path for damage in store.verify(tmp_path)] == [path]
    assert store.sittings(tmp_path, plan) == []  # and so the next one begins anew


def test_what_the_sittings_took_is_said_in_words(tmp_path):
    made = study.begin("johannsen2026_batch_size", "smoke", None, tmp_path)
    assert _took(made, 0, 0.0) == {}
    assert _took(made, 26, 90.0) == {"training alone": "1 min 30 s of one thread, 26 networks"}
    spent = {"seconds": 60.0, "cpu_seconds": 100.0, "predicted_seconds": 50.0, "processes": 2}
    study.note_sitting(made, **spent, runs=20)
    said = _took(made, 26, 90.0)
    assert said["wall time"] == "1 min 0 s with 2 processes (for 20 networks; of the others it was not noted)"
    assert said["predicted"] == "50 s, before the sitting"
    study.note_sitting(made, **spent | {"processes": 1}, runs=6)
    said = _took(made, 26, 90.0)
    assert said["wall time"] == "2 min 0 s with 2 or 1 processes in 2 sittings"
    assert said["processor time"] == "3 min 20 s, measuring included"
    assert said["predicted"] == "50 s, before the first sitting"


# --- all experiments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name an experiment"),
        (["johannsen2026_ntk", "--all"], "leave 'johannsen2026_ntk' or --all out"),
        (["--all", "--data", "digits"], "--data digits is for one experiment"),
        (["--all", "--out", "r.html"], "--out r.html is for one experiment"),
        (["--all", "--scale", "smokey"], "did you mean 'smoke'"),
    ],
)
def test_what_makes_no_sense_with_all_is_refused(words, said, tmp_path):
    done = CliRunner().invoke(app, ["run", *words, "--runs", str(tmp_path / "runs")])
    assert done.exit_code == 2
    assert said in done.stderr
    assert not list(tmp_path.glob("runs/*"))


def test_all_go_on_after_one_that_fails(monkeypatch, tmp_path, report):
    pools = []

    def one(name, begun, data, workers):
        pools.append(workers)
        if name.endswith("ntk"):
            raise RuntimeError("no such luck")
        return (1 if name.endswith("ticket") else 0), dataclasses.replace(report, name=name)

    monkeypatch.setattr(running, "_run", one)
    monkeypatch.setattr(reports, "to_html", lambda said: said.name)
    done = CliRunner().invoke(app, ["run", "--all", "--scale", "smoke", "--runs", str(tmp_path)])
    assert done.exit_code == 1
    assert "johannsen2026_ntk: no such luck" in done.stderr
    assert len(pools) > 5
    assert len({id(workers) for workers in pools}) == 1  # one pool for all
    assert len(list(tmp_path.glob("*.html"))) == len(pools) - 1
    table = done.stdout.rpartition("claims as published")[2]
    assert table.count("failed") == table.count("incomplete") == 1
    monkeypatch.setattr(running, "_run", lambda *_: (130, None))
    done = CliRunner().invoke(app, ["run", "--all", "--scale", "smoke", "--runs", str(tmp_path)])
    assert done.exit_code == 130
    assert done.stdout.count("stopped") == 1  # and no other was begun


# --- the scoreboard -----------------------------------------------------------------------------------------------


def test_the_scoreboard_is_what_the_records_say(scoreboard, report, text, tmp_path):
    results = tmp_path / "docs/results"
    results.mkdir(parents=True)
    record = to_markdown(dataclasses.replace(report, data="mnist"), text)
    (results / "johannsen2026_batch_size.md").write_text(record, encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Top\n\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\n\nrest\n", encoding="utf-8")
    for path, wanted in scoreboard.outdated(tmp_path).items():
        path.write_text(wanted, encoding="utf-8")
    assert scoreboard.outdated(tmp_path) == {}
    shown_there = readme.read_text(encoding="utf-8")
    assert shown_there.startswith("# Top\n")
    assert shown_there.endswith("\n\nrest\n")
    assert "old" not in shown_there
    assert f"[{report.experiment.title}](docs/results/johannsen2026_batch_size.md)" in shown_there
    assert "(digits, laptop scale; also mnist)" in shown_there
    published = {v.claim.text: v for v in report.verdicts if v.control is None}
    for i, claim in enumerate(made_up.claims()):
        lines = [line for line in shown_there.splitlines() if line.startswith(f"| {claim.text}")]
        assert len(lines) == (1 if i == 0 or claim.paper else 0)
        mine = [v for v in report.verdicts if v.claim.text == claim.text and v.control is not None]
        said = {f"{n} {word}" for word, n in Counter(v.word for v in mine).items()}
        for line in lines:
            assert f"**{published[claim.text].word}**" in line
            assert set(line.split(" | ")[-1].removesuffix(" |").split(", ")) == said
            assert shown(claim, published[claim.text].effect) in line
    every = (results / "README.md").read_text(encoding="utf-8")
    assert every.count(f"| {LINE}") == 2
    assert every.count(f"| positive control: {made_up.POSITIVE.text}") == 2


def test_a_replication_stands_beside_what_was_planned_and_is_not_counted(scoreboard, report, tmp_path):
    published = [v for v in report.verdicts if v.control is None]
    again = dataclasses.replace(report, replication=published, replication_seeds="seeds 10 to 19")
    (tmp_path / "made_up.md").write_text(to_markdown(again), encoding="utf-8")
    (found,) = scoreboard.records(tmp_path)
    for row, verdict in zip(found.parts[0].claims, published, strict=False):
        first, _, new = row.cells[3].partition("; on new seeds ")
        assert first.startswith(f"**{verdict.word}**")
        assert new == f"**{verdict.word}**, {row.cells[2]}"
    supported = sum(v.word == "supported" for v in published if v.claim.primary and not v.claim.positive)
    assert f"judged as published, and {supported} are supported" in scoreboard.whole([found])


def test_the_readmes_scoreboard_is_that_of_the_records(scoreboard, root):
    assert [path.name for path in scoreboard.outdated(root)] == []
