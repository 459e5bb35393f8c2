import base64
import dataclasses
import gzip
import hashlib
import json
import math
import re
import subprocess
import sys

import made_up
import numpy as np
import pytest

from landscope import stats
from landscope.figures import Figure
from landscope.report import (
    EQUAL,
    Report,
    compact,
    data_table,
    export,
    forest,
    headline,
    held_equal,
    measures_html,
    to_csv,
    to_html,
    to_json,
    to_latex,
)
from landscope.types import Estimate, Table


@pytest.fixture(scope="module")
def report() -> Report:
    return made_up.report()


@pytest.fixture(scope="module")
def page(report) -> str:
    return to_html(report)


# --- for programs ------------------------------------------------------------------------------------------------


def test_json_has_one_entry_per_claim_and_protocol(report):
    facts = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert (facts["experiment"], facts["scale"], facts["data"], facts["seeds"]) == (report.name, "laptop", "digits", 10)
    claims = made_up.claims()
    known = [c for c in claims if c.positive]
    explored = [c for c in claims if not c.primary]
    assert len(facts["claims"]) == (len(claims) - len(known) - len(explored)) * len(made_up.PROTOCOLS)
    assert len(facts["positive_controls"]) == 1
    assert len(facts["exploratory"]) == len(explored) * len(made_up.PROTOCOLS)
    assert {e["verdict"] for e in facts["claims"]} <= {"supported", "contradicted", "inconclusive", "not testable"}
    wanted = {"text", "effect", "low", "high", "p_adjusted", "verdict", "paper", "n", "control"}
    assert all(wanted <= entry.keys() for entry in facts["claims"])
    assert {e["control"] for e in facts["claims"]} == {None, *list(made_up.PROTOCOLS)[1:]}
    first = facts["claims"][0]
    assert first["paper"]["value"] == pytest.approx(math.log(11.58))
    assert first["low"] < first["effect"] < first["high"]
    assert "environment" not in facts


def test_json_says_which_claims_are_post_hoc():
    text = made_up.claims()[1].text
    facts = to_json(made_up.report(post_hoc=(text,)))
    assert {e["text"] for e in facts["claims"] if e["post_hoc"]} == {text}


def test_figures_of_one_name_are_refused():
    figure = made_up.drawn(made_up.tables())[0]
    with pytest.raises(ValueError, match="several called learning-curves"):
        made_up.report(figures=(figure, figure))


# --- what it says ------------------------------------------------------------------------------------------------


def verdict(text: str, control: str | None, word: str) -> stats.Verdict:
    claim = dataclasses.replace(made_up.claims()[0], text=text)
    return stats.Verdict(claim, control or "published", control, word, "because")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "Nothing has been judged yet."),
        ({"a": ["supported"]}, "The claim is supported under the published protocol."),
        (
            {"a": ["supported", "supported"]},
            "The claim is supported under the published protocol. Of the supported, c1: 1 supported.",
        ),
        (
            {"a": ["supported", "inconclusive"], "b": ["contradicted", "supported"]},
            "Of 2 claims, 1 is supported and 1 is contradicted under the published protocol. "
            "Of the supported, c1: 1 inconclusive.",
        ),
        (
            {"a": ["supported", "supported", "supported"], "b": ["supported", "contradicted", "supported"]},
            "All 2 claims are supported under the published protocol. "
            "Of the supported, c1: 1 supported, 1 contradicted; c2: 2 supported.",
        ),
        ({"a": ["inconclusive", "supported"]}, "The claim is inconclusive under the published protocol."),
    ],
)
def test_the_headline_is_the_answer(words, said):
    verdicts = [verdict(t, f"c{i}" if i else None, w) for t, ws in words.items() for i, w in enumerate(ws)]
    assert headline(verdicts) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["supported"], "The positive control is found."),
        (["inconclusive"], "The positive control is not found."),
        (["descriptive"], "The positive control is not judged."),
        (["supported", "not testable"], "Of 2 positive controls, 1 is found and 1 is not judged."),
        (["supported", "contradicted"], "Of 2 positive controls, 1 is found."),
    ],
)
def test_the_headline_tells_a_positive_control_that_fails_from_one_with_too_few_runs(words, said):
    own = [verdict(str(i), None, word) for i, word in enumerate(words)]
    positive = [dataclasses.replace(v, claim=dataclasses.replace(v.claim, positive=True)) for v in own]
    assert headline([verdict("a", None, "supported"), *positive]).endswith(f" protocol. {said}")


def test_the_headline_says_which_control_leaves_the_losses_apart():
    verdicts = [verdict("a", control, "supported") for control in (None, "c1", "c2")]
    said = headline(verdicts, {"published": 40.0, "c1": 36.6, "c2": 1.9})
    assert said.endswith("Of the supported, c1 (losses apart): 1 supported; c2: 1 supported.")


def test_other_levels_are_told_beside_the_one_that_decides():
    first, *others = made_up.report().verdicts
    there = dataclasses.replace(first, word="contradicted", effect=0.03)
    told = dataclasses.replace(first, other_steps={"train_loss < 0.1": there})
    assert told.sentence == f"{first.sentence} Of the other steps measured: {told.agreement}."
    assert told.agreement == "contradicted (×1.030) at train_loss < 0.1"
    facts = to_json(made_up.report(verdicts=[told, *others]))["claims"][0]
    assert facts["other_steps"]["train_loss < 0.1"]["verdict"] == "contradicted"
    page = to_html(made_up.report(verdicts=[told, *others]))
    assert "contradicted at train_loss &lt; 0.1" in page
    assert "published, at train_loss &lt; 0.1" in page


def test_what_is_held_equal_is_measured():
    held = held_equal(made_up.tables())
    assert held["published"]["samples seen"].equal
    assert held["published"]["optimizer steps"].factor == pytest.approx(64, rel=0.01)
    assert held["published"]["training loss"].factor == pytest.approx(64**0.9, rel=0.1)
    assert held["equal training loss"]["training loss"].factor < EQUAL
    assert held["equal lr/batch ratio"]["learning rate ÷ batch size"].factor == pytest.approx(1)
    assert held["equal number of steps"]["optimizer steps"].values == pytest.approx((12000, 12000))
    assert held_equal({"p": Table.of([{"batch_size": 8, "train_loss": 1.0}])}) == {"p": {}}
    half = Table.of([{"batch_size": b, "train_loss": v} for b, v in ((8, None), (8, 2.0), (32, 0.0), (64, 4.0))])
    assert held_equal({"p": half})["p"]["training loss"].values == pytest.approx((2.0, 4.0))


def test_the_forest_shows_every_unit_and_every_protocol(report):
    verdicts = [v for v in report.verdicts if v.claim.text == report.verdicts[0].claim.text]
    figure = forest(verdicts, "effect-1")
    assert figure is not None
    points = [s for s in figure.panels[0].series if s.faint]
    assert len(points) == len(made_up.PROTOCOLS)
    for series, v in zip(points, verdicts, strict=True):
        np.testing.assert_allclose(np.log(series.x), v.units.values)
    paper = next(s for s in figure.panels[0].series if s.name == "the paper’s number")
    assert paper.x[0] == pytest.approx(11.58)
    assert forest([verdict("a", None, "not testable")], "effect-1") is None
    open_ended = dataclasses.replace(verdicts[0], low=-math.inf, high=math.inf, holm_low=-math.inf, holm_high=math.inf)
    figure = forest([open_ended], "effect-1")
    assert figure is not None
    whole = next(s for s in figure.panels[0].series if s.name == "published protocol")
    assert whole.low is not None
    assert np.isnan(whole.low).all()
    assert "its interval unbounded" in figure.finding


def test_the_page_says_everything(report, page):
    text = re.sub(r"\s+", " ", page)
    for said in (
        report.command,
        *report.experiment.deviations,
        *(c.text for c in made_up.claims()),
        *(c.paper.source for c in made_up.claims() if c.paper),
        *(c.expectation for c in made_up.claims()),
        *(p.holds for p in report.experiment.runs.values()),
        *(key for keys in report.runs.values() for key in keys),
        *(f.finding for f in report.figures),
        *report.environment.values(),
        "×11.58",
        "+1.61 points",
    ):
        assert said in text, said


def test_what_is_missing_is_said(report):
    bare = made_up.report(tables={}, figures=(), runs={}, counts={}, environment={}, command="", plan={})
    assert "What is held equal" in to_html(bare) or "what is held equal" in to_html(bare)
    unjudged = made_up.report(verdicts=[verdict("a claim", None, "not testable")], figures=())
    page = to_html(unjudged)
    assert "not testable" in page
    assert "because" in page
    assert "<script>" not in page  # nothing to draw: no library


def test_replications_and_post_hoc_claims_are_marked(report):
    text = report.verdicts[0].claim.text
    again = made_up.report(replication=report.verdicts[:1], replication_seeds="10 to 19", post_hoc=(text,))
    page = to_html(again)
    assert "Replication on other seeds (10 to 19)" in page
    assert "post hoc" in page


def test_long_tables_are_thinned_and_say_so():
    series = made_up.drawn(made_up.tables())[0]
    table = data_table(series)
    assert len(table["rows"]) <= 200 < table["total"] == len(series.table())


# --- F1, F2: size and policy -------------------------------------------------------------------------------------


def test_the_page_is_small_and_holds_one_library(page):
    assert len(page.encode()) <= 2_200_000
    assert len(gzip.compress(page.encode())) <= 2_200_000
    assert page.count("plotly.js (cartesian - minified) v4.1.1") == 1
    assert len(to_html(made_up.report(2)).encode()) <= 2_000_000


def test_the_policy_names_the_scripts_and_nothing_else(page):
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[0].replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert len(scripts) == 3
    assert policy.startswith("default-src 'none'; script-src ")
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert "unsafe-inline" not in policy.split("style-src")[0]
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<[^>]*\son\w+\s*=", markup)


def test_reports_do_not_import_torch():
    code = "import sys; import landscope.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- one network -------------------------------------------------------------------------------------------------


def test_measures_of_one_network_are_a_page():
    page = measures_html(
        "My <network>",
        {"parameters": "9,610"},
        {
            "top_eigenvalues(k=1)": {"top_eigenvalue": 1.5, "residual": Estimate(0.25)},
            "perturbation": {"loss": Estimate.of([1.0, 2.0, 3.0]), "curve": np.arange(3.0)},
        },
        notes={"perturbation": "Gaussian noise on every weight."},
        command="landscope measure x",
    )
    for said in ("My &lt;network&gt;", "9,610", "0.25", "exact", "−0.48 to 4.48", "3 numbers", "0; 1; 2"):
        assert said in page, said
    assert "<script" not in page


# --- files for a paper -------------------------------------------------------------------------------------------


def test_export_writes_figures_and_tables(tmp_path):
    made = made_up.report()
    small = dataclasses.replace(made, figures=made.figures[:1], verdicts=made.verdicts[:1])
    files = export(small, tmp_path / "out")
    names = sorted(str(f.relative_to(tmp_path / "out")) for f in files)
    assert [n for n in names if n.startswith("figures")] == [
        f"figures/{name}{end}"
        for name in ("effect-1", "learning-curves")
        for end in ("-3.25in.pdf", "-6.75in.pdf", ".png")
    ]
    assert {"tables/verdicts.csv", "tables/verdicts.tex", "tables/figure-learning-curves.csv"} <= set(names)
    assert "tables/results-0-published.csv" in names
    assert all(f.stat().st_size for f in files)
    contents = [f.read_bytes() for f in files]
    assert [f.read_bytes() for f in export(small, tmp_path / "out")] == contents


def test_tables_keep_numbers_in_full_and_text_harmless():
    table = Table.of([{"a,b": 0.1 + 0.2, "t": '=cmd|"x"'}, {"a,b": None, "t": "50 % of $x_1$ & \\ {τ}"}])
    assert to_csv(table) == '"a,b",t\n0.30000000000000004,"\'=cmd|""x"""\n,50 % of $x_1$ & \\ {τ}\n'
    assert to_latex(table).splitlines()[4:6] == [
        r"0.3 & =cmd\textbar{}\"x\" \\".replace(r"\"", '"'),
        r" & 50 \% of \$x\_1\$ \& \textbackslash{} \{$\tau$\} \\",
    ]


def test_numbers_are_short():
    assert [compact(v) for v in (0.38412, 12000, 6_144_000.0, 64.03, 9.7656e-6)] == [
        "0.384",
        "12,000",
        "6,140,000",
        "64",
        "9.77e-06",
    ]


def test_a_figure_without_a_finding_cannot_reach_a_report():
    figure = made_up.drawn(made_up.tables())[0]
    with pytest.raises(ValueError, match="finding"):
        Figure("f", "t", "no finding", figure.panels)
