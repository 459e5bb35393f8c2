"""The gallery's scripts, run as they stand: they draw what the page shows, and their numbers are what it says."""

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def draw(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", root / "docs/draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(pattern: str, said: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, said)]


SCRIPTS = {  # the figure that each draws, and the largest eigenvalue that the page names
    "mlp.py": ("mlp", 2.9),
    "resnet.py": ("resnet20", 4.8),
    "transformer.py": ("transformer", 0.98),
    "physics.py": ("physics", 107),
}


@pytest.mark.parametrize("name", list(SCRIPTS))
def test_a_script_of_the_gallery_does_what_the_page_says(draw, root, tmp_path, name):
    page = root / "docs/gallery.md"
    said = draw.run(name, draw.examples(page)[name], tmp_path)
    figure, largest = SCRIPTS[name]
    eigenvalues = numbers(r"(?m)^  (-?[\d.e+]+) within", said)
    assert eigenvalues[0] == max(eigenvalues) == pytest.approx(largest, rel=0.05)
    assert "not converged" not in said
    # Two estimates with independent probes, or one and the exact value.
    (one, first), (other, second) = re.findall(r"(?m)^ *trace (-?[\d.e+]+)(?: ± ([\d.e+]+))?", said)
    assert float(one) == pytest.approx(float(other), abs=5 * math.hypot(float(first), float(second or 0)))
    drawn = tmp_path / f"{figure}.svg"
    assert f"figures/{figure}.svg" in page.read_text(encoding="utf-8")
    kept = (root / "docs/figures" / drawn.name).read_text(encoding="utf-8")
    here, there = (re.findall(r"<desc>(.*?)</desc>", text)[0] for text in (drawn.read_text(encoding="utf-8"), kept))
    assert numbers(r"is (\d+\.?\d*)", here) == pytest.approx(numbers(r"is (\d+\.?\d*)", there), rel=0.05)


def test_every_script_of_the_gallery_is_run(draw, root):
    assert set(draw.examples(root / "docs/gallery.md")) == set(SCRIPTS)


def test_a_script_that_fails_is_told(draw, tmp_path):
    with pytest.raises(RuntimeError, match=r"broken\.py failed"):
        draw.run("broken.py", "raise SystemExit(3)", tmp_path)
