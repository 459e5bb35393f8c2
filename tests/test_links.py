"""The link checker finds what is broken and passes what is right."""

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("check_links", Path(__file__).parent.parent / "docs/check_links.py")
assert _spec is not None
assert _spec.loader is not None
check_links = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_links)


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("# Getting started", "getting-started"),
        ("## What's *new*, in 2.0?", "whats-new-in-20"),
        ("### `landscope run` and its flags", "landscope-run-and-its-flags"),
        ("## [Unreleased](https://example.org)", "unreleased"),
        ("## λ_max & friends", "λ_max--friends"),
        ('<a id="by-hand"></a>', "by-hand"),
        ("## Closed ##", "closed"),
    ],
)
def test_anchors_are_githubs(heading, anchor):
    assert check_links.anchors(heading) == {anchor}


def test_repeated_headings_are_numbered():
    assert check_links.anchors("# A\n# A\n# A\n") == {"a", "a-1", "a-2"}


def test_headings_inside_code_are_none():
    assert check_links.anchors("```bash\n# install\n```\n# Real\n") == {"real"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/guide.md").write_text("# Guide\n## Part one\n[home](../README.md#top)\n")
    (tmp_path / "figure (1).png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/guide.md#part-one)",
        "[a](docs/guide.md#part-one 'title')",
        "[below](#top)",
        "[web](https://example.org/missing) and [mail](mailto:nobody)",
        "`[code](missing.md)`",
        "```\n[code](missing.md)\n```",
        "![picture](figure%20(1).png)",
        "[![badge](docs/guide.md)](docs/)",
        "[r]: docs/guide.md\n",
        '<a href="docs/guide.md#guide">x</a>',
        "[root](/docs/guide.md)",
    ],
)
def test_good_links_pass(project, text):
    (project / "README.md").write_text("# Top\n" + text)
    assert check_links.broken(project) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a](missing.md)", "no such file"),
        ("[a](docs/guide.md#part-two)", "no such heading"),
        ("[a](#nowhere)", "no such heading"),
        ("![p](missing.png)", "no such file"),
        ("[![b](docs/guide.md)](missing/)", "no such file"),
        ("[![b](missing.png)](docs/)", "no such file"),
        ("[r]: missing.md", "no such file"),
        ('<img src="missing.png">', "no such file"),
        ("[out](../outside.md)", "out of the project"),
        ("[a](docs/guide.md) [b](missing.md)", "missing.md: there is no such file"),
    ],
)
def test_broken_links_are_named_with_their_line(project, text, why):
    (project / "README.md").write_text("# Top\n" + text)
    found = check_links.broken(project)
    assert len(found) == 1
    assert found[0].startswith("README.md:2: ")
    assert why in found[0]


def test_the_project_has_no_broken_links(root):
    assert check_links.broken(root) == []
