"""What `plan` shows: like networks in one row, and what differs between them."""

import re

from landscope import study, terminal
from landscope.prediction import Cost
from landscope.spec import key


def test_networks_that_begin_and_are_trained_alike_share_a_row(tmp_path, capsys):
    made = study.begin("johannsen2026_lottery_ticket", "smoke", None, tmp_path, seeds=1)
    runs = made.runs(1)
    costs = {key(recipe): Cost(40, 60.0 + 60 * i, 1.0, 2**20) for i, (_, recipe) in enumerate(runs)}
    terminal._print_protocols(made, costs)
    table, _, notes = capsys.readouterr().out.partition("What else differs between the networks of a seed:\n")
    rows = [line for line in table.splitlines() if " SGD 0.1" in line]
    assert sum(map(_networks, rows)) == len(runs)
    assert len(rows) < len(runs) / 2
    assert "prune and" in table
    assert re.search(r" min 0 s +1 s", table), "one time where all are alike"
    said = " ".join(notes.split())
    assert "start.density 0.5, 0.1" in said
    assert "model.widths (32, 16), (5, 2)" in said
    assert "@" not in notes  # the runs that others come from say nothing to a reader


def _networks(line: str) -> int:
    """The column of that name: the last number before the times."""
    return int(re.split(r" \d+ min", line)[0].split()[-1])
