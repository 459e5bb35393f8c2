"""What .ci/run asks of the demo's facts: it passes what is right and names what is missing."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("check_demo", Path(__file__).parent.parent / ".ci/check_demo.py")
assert _spec is not None
assert _spec.loader is not None
check_demo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_demo)


def entry(control: str | None, **changed: Any) -> dict[str, Any]:
    numbers = {"effect": 1.0, "low": 0.5, "high": 1.5, "p_adjusted": 0.01, "n": 10}
    return {"text": "flatter", "verdict": "supported", "paper": None, "control": control} | numbers | changed


def report() -> dict[str, Any]:
    claims = [entry(control) for control in (None, "loss", "ratio", "steps")]
    return {"experiment": "x", "scale": "laptop", "data": "digits", "claims": claims}


def test_a_complete_report_passes():
    assert check_demo.faults(report()) == []
    untestable = report()
    untestable["claims"][1] |= {
        "verdict": "not testable",
        "effect": None,
        "low": None,
        "high": None,
        "p_adjusted": None,
    }
    assert check_demo.faults(untestable) == []


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda r: r.pop("data"), "no 'data'"),
        (lambda r: r.update(claims=[]), "no 'claims'"),
        (lambda r: r["claims"][0].pop("paper"), "lacks paper"),
        (lambda r: r["claims"][0].update(n=7), "at least 8"),
        (lambda r: r["claims"][2].update(verdict="true"), "the verdict is 'true'"),
        (lambda r: r["claims"][2].update(low=None), "without finite numbers"),
        (lambda r: r["claims"][2].update(low=1.2), "does not hold the effect"),
        (lambda r: r["claims"][2].update(p_adjusted=1.2), "no probability"),
        (lambda r: r["claims"].pop(), "3 different controls"),
        (lambda r: r["claims"].pop(0), "one published protocol"),
        (lambda r: r["claims"][1].update(control="steps"), "3 different controls"),
    ],
)
def test_what_is_missing_is_named(spoil, fault):
    spoiled = copy.deepcopy(report())
    spoil(spoiled)
    assert any(fault in found for found in check_demo.faults(spoiled))


def test_the_page_must_be_there(tmp_path, capsys):
    facts = tmp_path / "report.json"
    facts.write_text(json.dumps(report()))
    assert check_demo.main(tmp_path, facts) == 1
    assert "no report of 100 kB" in capsys.readouterr().err
    (tmp_path / "report.html").write_text("x" * 100_001)
    assert check_demo.main(tmp_path, facts) == 0
    assert "supported" in capsys.readouterr().out
