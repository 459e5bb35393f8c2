"""The pages of docs that compute something: their code runs as it stands, and says what the page says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.docs


def code_of(page: Path) -> tuple[str, str]:
    """The file name and the source of a page's Python block."""
    ((name, source),) = re.findall(r"```python\n# (\S+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return name, source


def test_the_rescaled_network_is_what_the_sharpness_page_says(root: Path, tmp_path: Path):
    page = root / "docs/sharpness.md"
    name, source = code_of(page)
    (tmp_path / name).write_text(source, encoding="utf-8")
    done = subprocess.run([sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (said,) = re.findall(r"^> (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    span, accuracy = (re.search(pattern, text) for text in (done.stdout,) for pattern in SPAN_AND_ACCURACY)
    span_said, accuracy_said = (re.search(pattern, said) for pattern in SPAN_AND_ACCURACY)
    assert span is not None
    assert span_said is not None
    assert accuracy is not None, "the accuracy is not the same for every factor"
    assert accuracy_said is not None
    assert float(span[1].replace(",", "")) == pytest.approx(float(span_said[1].replace(",", "")), rel=0.05)
    assert float(accuracy[1]) == pytest.approx(float(accuracy_said[1]), abs=0.01)
    assert "less than 0.1%" in done.stdout
    (drawn,) = tmp_path.glob("*.svg")
    kept = root / "docs/figures" / drawn.name
    assert kept.read_text(encoding="utf-8").startswith("<svg")


def test_the_population_of_its_page_trains_as_it_stands(root: Path, tmp_path: Path):
    (source,) = re.findall(
        r"```python\n(.*?)```", (root / "docs/populations.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "page.py").write_text(source, encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^lr (.*): accuracy \d+%$", done.stdout, re.MULTILINE) == ["0.05", "0.1", "0.15", "0.2"]


SPAN_AND_ACCURACY = (r"by a factor of ([\d,]+) while", r"accuracy stays at (0\.\d+);")
