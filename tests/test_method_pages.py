"""The pages of the methods: each one's example runs as it stands, and each has a formula and names its source."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.docs

PAGES = sorted(path for path in (Path(__file__).parent.parent / "docs/methods").glob("*.md") if path.stem != "README")

BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|^```(?:math|text)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
RELATION = re.compile(r"[=≤≥≈∝←→<>]|\\(?:le|ge|leq|geq|gets|approx|propto|leftarrow|to)\b")
SOURCE = re.compile(r"^(?:#+ *|\**)sources?\b[^\n]*(?:\n(?!#)[^\n]*)*", re.IGNORECASE | re.MULTILINE)
YEAR = re.compile(r"\b(?:19|20)\d\d\b")


def faults(page: str) -> list[str]:
    """What a page of a method lacks."""
    bare = BLOCK.sub("", page)
    formulas = [next(filter(None, found), "") for found in FORMULA.findall(bare)]
    sources = SOURCE.findall(bare)
    lacking = []
    if not re.match(r"# \S", page):
        lacking.append("a title in its first line")
    if not BLOCK.search(page):
        lacking.append("a ```python block that runs by itself")
    if not any(RELATION.search(formula) for formula in formulas):
        lacking.append("a formula, in $$…$$ or in a ```math or ```text block")
    if not any(YEAR.search(source) for source in sources):
        lacking.append('a heading or line that begins with "Source" and names a work with its year')
    return lacking


def run(source: str, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runs a block as a module of its own; the global generators are left as they were."""
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            exec(compile(source, f"{name}.py", "exec"), module.__dict__)  # noqa: S102 - our own pages
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
    return module.__dict__


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_has_a_formula_a_source_and_an_example(path: Path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_block_of_a_page_runs_by_itself(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for number, source in enumerate(BLOCK.findall(path.read_text(encoding="utf-8"))):
        run(source, f"page_{path.stem}_{number}", monkeypatch)


def test_the_index_lists_every_page(root: Path, tmp_path: Path):
    spec = importlib.util.spec_from_file_location("list_methods", root / "docs/list_methods.py")
    assert spec is not None
    assert spec.loader is not None
    lister = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lister)
    kept = (root / "docs/methods/README.md").read_text(encoding="utf-8")
    assert kept == lister.index(), "run: python docs/list_methods.py"
    (tmp_path / "sgd.md").write_text(COMPLETE.replace("$$ w", "The first method. Cheap.\n\n$$ w", 1), encoding="utf-8")
    assert lister.index(tmp_path) == lister.HEAD + "- [A method](sgd.md): the first method.\n"


COMPLETE = """# A method

$$ w \\leftarrow w - \\eta g $$

```python
x = 1
```

Source: Robbins and Monro, *A stochastic approximation method*, 1951.
"""


def test_a_complete_page_lacks_nothing():
    assert faults(COMPLETE) == []
    assert faults(COMPLETE.replace("Source: ", "## Sources\n\n")) == []
    assert faults(COMPLETE.replace("$$ w \\leftarrow w - \\eta g $$", "```text\nw ← w − η g\n```")) == []


@pytest.mark.parametrize(
    ("part", "replacement", "missing"),
    [
        ("# A method", "A method", "title"),
        ("```python", "```", "python"),
        ("$$ w \\leftarrow w - \\eta g $$", "", "formula"),
        ("$$ w \\leftarrow w - \\eta g $$", "$$ w $$", "formula"),
        ("Source: ", "Seen in ", "Source"),
        (", 1951", "", "year"),
    ],
)
def test_what_a_page_lacks_is_named(part: str, replacement: str, missing: str):
    (fault,) = [f for f in faults(COMPLETE.replace(part, replacement)) if missing in f]
    assert fault


def test_a_block_sees_no_other_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_rng_state()
    found = run("import torch\nx = torch.rand(3)\ntorch.set_default_dtype(torch.float64)", "page_a", monkeypatch)
    assert "x" in found
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(NameError, match="x"):
        run("print(x)", "page_b", monkeypatch)
