# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportOptionalIterable=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalSubscript=false
# What a record may lack is there in these.

"""``landscope rank``: from a store to a table, JSON and a page."""

import json
import re

import pytest
from commands import good, here, landscope, refused
from ranked import LEVELS, made_store, related, runs

from landscope import ranking, store
from landscope.report import ranking_html
from landscope.report.ranking import MOST_COLUMNS, answer, coefficients, heat
from landscope.spec import Call
from landscope.stats import rank_measures
from landscope.types import Table


@pytest.fixture(scope="module")
def rows():
    made = runs(related, seeds=2)
    made[3] = {k: v for k, v in made[3].items() if k in (*LEVELS, "seed", "data")} | {"status": "diverged"}
    return made


@pytest.fixture(scope="module")
def root(rows, tmp_path_factory):
    return made_store(tmp_path_factory.mktemp("rank") / "runs", rows, spectrum=True)


def test_the_stores_runs_are_a_table(root, rows):
    table = ranking.measured_runs(root)
    assert len(table) == len(rows)
    place = {(*(row[name] for name in LEVELS), row["seed"]): row for row in rows}
    for row in table.rows():
        made = place[(*(row[name] for name in LEVELS), row["seed"])]
        assert row["status"] == made["status"]
        assert row.get("follows") == made.get("follows")
        assert row["spectrum[1]"] == (2 * made["follows"] if "follows" in made else None)
        assert row["data.test"] == 400


def test_a_store_is_ranked_as_its_table_is(root, rows):
    found = ranking.rank_store(root, draws=100)
    assert [m.name for m in found.measures] == ["follows", "unrelated", "opposes"]
    told = rank_measures(Table.of(rows), draws=100, test_samples=0)
    assert [m.tau.value for m in told.measures] == [m.tau.value for m in found.measures]
    assert found.left_out == {"diverged": 1}
    assert (found.configurations, found.missing) == (12, "")


def test_a_condition_chooses_runs_and_an_arrays_name_its_elements(root):
    found = ranking.rank_store(root, where="seed = 0", measures=["spectrum", "opposes"], draws=100)
    assert found.runs == 12
    assert {m.name for m in found.measures} == {"spectrum[0]", "spectrum[1]", "opposes"}
    # A comment cannot swallow what stands behind the condition.
    assert ranking.rank_store(root, where="seed = 0 -- only these", draws=100).runs == 12


def test_one_name_of_two_measures_is_told_apart(root, rows, tmp_path):
    both = made_store(tmp_path / "both", rows[:8])
    made_store(both, rows[8:], measure=Call("landscope.measures.made_up", (("samples", 3),)))
    names = ranking.measured_runs(both).columns
    assert "made_up().follows" in names or "made_up.follows" in " ".join(names)
    assert any(name.startswith("made_up(samples=3)") for name in names)


def test_runs_that_never_reached_their_level_are_left_out(tmp_path, monkeypatch):
    made = Table(
        {
            "run": ("a", "b", "c"),
            "status": ("done",) * 3,
            "stop.level": (0.01, 0.01, None),
            "steps_made": (100, 50, 100),
            "steps": (100, 100, 100),
        }
    )
    columns = {"run": ("a", "b", "c"), "measure": ("m",) * 3, "call": ('{"call":"m","revision":0,"settings":{}}',) * 3}
    values = Table(columns | {"name": ("train_loss",) * 3, "index": (None,) * 3, "value": (0.5, 0.005, 0.5)})
    monkeypatch.setattr(store, "sql", lambda root, query: made if query.startswith("select *") else values)
    assert ranking.measured_runs(tmp_path)["status"] == ("censored", "done", "done")


def test_bad_requests_are_told(root, tmp_path):
    with pytest.raises(ValueError, match=r"the query failed: .*batch_sise.*there are runs\(run, status, "):
        ranking.rank_store(root, where="batch_sise > 8")
    with pytest.raises(ValueError, match="the query failed: Parser Error"):
        ranking.rank_store(root, where="batch_size >")
    with pytest.raises(ValueError, match="the query failed"):  # the data base is locked
        ranking.rank_store(root, where="run in (select * from read_csv('/etc/passwd'))")
    with pytest.raises(LookupError, match="no finished run with batch_size > 999"):
        ranking.rank_store(root, where="batch_size > 999")
    with pytest.raises(LookupError, match="no finished run in"):
        ranking.rank_store(tmp_path)
    with pytest.raises(LookupError, match="no run was measured at step 'start'; the steps there are: end"):
        ranking.rank_store(root, step="start")
    with pytest.raises(LookupError, match="did you mean 'follows'"):
        ranking.rank_store(root, measures=["folows"])
    with pytest.raises(ValueError, match=r"at least 12 .* there are 8 .*batch_size: 8, 16"):
        ranking.rank_store(root, where="batch_size < 32")


def test_the_command_prints_a_table_and_writes_the_page(root, tmp_path):
    page = tmp_path / "page.html"
    said = here("rank", "--runs", root, "--out", page)
    assert max(len(line) for line in said.splitlines() if not line.startswith(("Report", "Predicting"))) <= 120
    assert re.search(r"follows +\+0\.\d\d \[.*✓ predicts", said)
    assert "Runs left out: 1 diverged." in said
    assert said.strip().splitlines()[-1] == f"Report: {page}"
    assert "What predicts the generalization gap?" in page.read_text()


def test_the_commands_json_stands_alone_and_is_the_same_each_time(root):
    words = ("rank", "--runs", root, "--json", "--measures", "follows,opposes", "--where", "seed = 0")
    first = landscope(*words)
    assert first.returncode == 0, first.stderr
    assert first.stdout == here(*words)
    facts = json.loads(first.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert [m["name"] for m in facts["measures"]] == ["follows", "opposes"]
    assert facts["outcome"] == "generalization_gap"
    assert not (root / "rank-generalization_gap.html").exists()


def test_wrong_usage_is_one_line(root, tmp_path):
    refused(landscope("rank", "--runs", tmp_path / "none"), "there is no store at", "--runs")
    refused(landscope("rank", "--runs", root, "--outcome", "test_los"), "no outcome is called 'test_los'")


def test_help_fits_a_narrow_terminal():
    said = good("rank", "--help")
    assert max(map(len, said.splitlines())) <= 80
    assert not re.search(r"\w\.\.\.", said)


def test_the_command_that_makes_a_page_again_stands_in_it():
    settings = {"measures": ("a", "b"), "where": "lr < 1", "outcome": "test_loss", "step": "end", "test_samples": None}
    assert (
        ranking.command(settings | {"seed": 0}) == "landscope rank --measures a,b --where 'lr < 1' --outcome test_loss"
    )
    assert ranking.command({}) == "landscope rank"


# --- the page -----------------------------------------------------------------------------------------------------


def many_levels(place, seed, random):
    return related(place, seed, random) | {"<b>bold": random.random()}


def test_the_page_says_what_was_found():
    found = rank_measures(Table.of(runs(many_levels, seeds=2)), draws=100)
    page = ranking_html(found, command="landscope rank --where 'x < 1'")
    for record in found.measures:
        assert record.name.replace("<", "&lt;").replace(">", "&gt;") in page
    assert "<b>bold" not in page
    assert "12 of 12 in the grid" in page
    assert "landscope rank --where &#39;x &lt; 1&#39;" in page
    assert page.count("<figure") == 1
    assert page.count('class="agree"') > 3
    assert 'class="differ"' in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert ranking_html(found) == ranking_html(found)


def test_the_answer_and_the_figure_have_the_numbers():
    found = rank_measures(Table.of(runs(related, seeds=2)), draws=100)
    best = found.measures[0]
    assert best.name == "follows"
    said = answer(found)
    assert said.startswith("Of 3 measures, 1 orders the configurations as the generalization gap does")
    assert f"{best.granulated.value:+.2f} along the axes" in said
    assert "1 order them the other way round" in said
    figure = coefficients(found)
    (panel,) = figure.panels
    assert [s.name for s in panel.series[1:]] == ["τ over all pairs", "τ along axes, mean", "given the controls"]
    assert panel.series[1].x.tolist() == [record.tau.value for record in found.measures]
    assert f"{best.granulated.value:.2f}" in figure.finding


def test_a_heat_map_of_many_levels_is_parted_and_shows_neighbours():
    levels = {"batch_size": tuple(range(1, 15)), "optimizer.lr": (0.1, 0.2)}
    found = rank_measures(Table.of(runs(related, levels)), draws=100)
    parts = heat(found)
    shown = [levels for part in parts for levels, _ in part.environments]
    assert shown == [*(f"{k} → {k + 1}" for k in range(1, 14)), "0.1 → 0.2"]
    assert all(len(part.environments) <= MOST_COLUMNS for part in parts)
    assert all(sum(count for _, count in part.axes) == len(part.environments) for part in parts)
    for part in parts:
        for name, cells in part.rows:
            assert len(cells) == len(part.environments), name
    (follows,) = [m for m in found.measures if m.name == "follows"]
    last = dict(parts[-1].rows)["follows"][-1]
    assert last[0] == f"{100 * follows.errors[-1]:.0f} %"
