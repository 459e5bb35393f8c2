"""What notebooks show: every value has an HTML form that is short and holds no HTML of the data's."""

import re
import sys
import warnings

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


@pytest.fixture(scope="module")
def shown():
    """The outputs of a notebook's cells, by MIME type, run by Jupyter itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Jupyter's own
        import nbformat
        from jupyter_client.manager import KernelManager
        from nbconvert.preprocessors import ExecutePreprocessor

        cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS.split("===")]
        notebook = nbformat.v4.new_notebook(cells=cells)

        class Here(KernelManager):
            """This interpreter, whatever kernels are installed."""

            @property
            def kernel_cmd(self):
                return [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]

            def format_kernel_cmd(self, extra_arguments=None):
                return [word.format(connection_file=self.connection_file) for word in self.kernel_cmd]

        made = ExecutePreprocessor(timeout=300, kernel_name="python3")
        made.preprocess(notebook, {"metadata": {"path": "."}}, km=Here(kernel_name="python3"))
    return [cell.outputs[-1]["data"] if cell.outputs else {} for cell in notebook.cells]


@pytest.mark.parametrize(("index", "name"), enumerate(("Estimate", "Table", "Figure", "Verdict", "Snapshot"), 1))
def test_every_value_shows_itself_shortly_and_escaped(shown, index, name):
    page, text = shown[index]["text/html"], shown[index]["text/plain"]
    assert text
    assert len(text) <= 20_000
    assert 10 < len(page.encode()) <= 20_000
    assert "<script" not in page
    assert "<img" not in page
    assert not re.search(r"<[^>]*onerror", page)
    if name != "Estimate":
        assert "&lt;" in page  # what came with the data is there, as text
    assert page.count("<table") == page.count("</table>")
