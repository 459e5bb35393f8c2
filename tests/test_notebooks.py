"""What notebooks show: every value has an HTML form that is short and holds no HTML of the data's."""

import json
import re
import subprocess
import sys

import pytest

CELLS = """
import numpy as np, torch
from landscope.types import Estimate, Snapshot, Table, Batches
from landscope.figures import Axis, Figure, Panel, Series
from landscope.stats import difference, judge
from landscope.spec import Claim, call
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\\"'&</table>"
===
Estimate.of(np.arange(10000.0), draws=EVIL)
===
Table.of({"name": EVIL, EVIL: i, "long": "x" * 500} for i in range(5000))
===
Figure("f", EVIL, EVIL + " is a finding of more than forty characters: 3",
       (Panel(EVIL, Axis(EVIL), Axis(EVIL), tuple(Series(EVIL + str(k), np.arange(300.0), np.arange(300.0))
        for k in range(20))),), EVIL)
===
rows = [{"seed": s, "batch_size": b, "y": b + s * .1} for s in range(200) for b in (1, 2)]
claim = Claim(EVIL, call(difference, value="y", over="batch_size", first=1, second=2), "less", unit=EVIL)
judge([claim], {EVIL: Table.of(rows)}, 200)[0]
===
class Network(torch.nn.Linear):
    def extra_repr(self): return EVIL
network = Network(300, 300)
data = Batches(torch.zeros(5000, 300), torch.zeros(5000, dtype=torch.int64))
Snapshot(network, network.state_dict(), None, torch.nn.functional.cross_entropy, data, None, None, 0, 0)
"""


EXECUTE = """
import json, sys
import nbformat
from jupyter_client.manager import KernelManager
from nbconvert.preprocessors import ExecutePreprocessor

class Here(KernelManager):
    # this interpreter, whatever kernels are installed
    def format_kernel_cmd(self, extra_arguments=None):
        return [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file]

cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in sys.stdin.read().split("===")]
notebook = nbformat.v4.new_notebook(cells=cells)
made = ExecutePreprocessor(timeout=300, kernel_name="python3")
made.preprocess(notebook, {"metadata": {"path": "."}}, km=Here(kernel_name="python3"))
print(json.dumps([cell.outputs[-1]["data"] if cell.outputs else {} for cell in notebook.cells]))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The outputs of a notebook's cells, by MIME type, run by Jupyter itself (whose sockets stay open at its end)."""
    folder = tmp_path_factory.mktemp("notebook")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXECUTE],
        input=CELLS,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("index", "name"), list(enumerate(("Estimate", "Table", "Figure", "Verdict", "Snapshot"), 1)))
def test_every_value_shows_itself_shortly_and_escaped(shown, index, name):
    page, text = shown[index]["text/html"], shown[index]["text/plain"]
    assert text
    assert len(text) <= 20_000
    assert 10 < len(page.encode()) <= 20_000
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r"<[^>]*onerror", page)
    if name not in ("Estimate", "Snapshot"):  # which show numbers alone
        assert "&lt;" in page  # what came with the data is there, as text
    assert page.count("<table") == page.count("</table>")
