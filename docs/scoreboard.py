"""Writes the scoreboard in README.md and docs/results/README.md from the records: ``python docs/scoreboard.py``.

With ``--check`` nothing is written; the exit code says whether both are what the records make of them.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- scoreboard: docs/scoreboard.py writes it -->", "<!-- end of the scoreboard -->"
HEAD = """# Results

One file for each experiment, with the tables of its reports as text (`landscope report EXPERIMENT --out FILE.md`):
verdicts under every protocol, means of all arms, what was run and how long it took. Below are all claims under the
published protocol and under each control, all data sets, positive controls last. *On new seeds* is a replication,
judged alone, where more seeds were run than planned.

"""
ABOVE = """
## What came of the claims

What papers claim, or their numbers say, under a scaled-down version of their own protocol, and what becomes of it under
controls. Some are meant to take an effect away, as clean labels take away a peak. [All claims, data sets and
numbers](docs/results/README.md), with the commands that make them again and where each number is from.

"""
CELL = re.compile(r"\*\*(?P<word>[^*]+)\*\*(?: \((?P<why>negligible|reversed|too small)\))?(?P<rest>.*)")

BESIDE = re.compile(r"; [^()]*\)")  # what stands in brackets after the interval that decides


@dataclass(frozen=True)
class Row:
    """One claim on one data set: its text, the paper's number, by protocol what is said of it, and on new seeds."""

    claim: str
    paper: str
    said: dict[str, str]
    again: str = ""

    @property
    def cells(self) -> list[str]:
        """Claim, the paper's number, ours, the verdict, and what the controls say."""
        published, *controls = (CELL.match(text) for text in self.said.values())
        if published is None:
            return [self.claim, self.paper, "", "not judged", ""]
        ours, again = _number(published), CELL.match(self.again)
        kind = f", {published['why']}" if published["why"] else ""
        words = {name: found["word"] for name, found in zip(list(self.said)[1:], controls, strict=True) if found}
        counts = [f"{n} {word}" for word, n in Counter(words.values()).most_common()]
        said = ", ".join([f"{name}: {word}" for name, word in words.items()] if len(words) == 1 else counts) or "–"
        verdict = f"**{published['word']}**{kind}"
        if again is not None:
            verdict += f"; on new seeds **{again['word']}**, {_number(again)}"
        return [self.claim, self.paper, ours, verdict, said]


def _number(found: re.Match[str]) -> str:
    """The effect, the interval that decides, and n."""
    effect = BESIDE.sub(")", found["rest"]).strip().removeprefix(": ").partition("; ")[0]
    return effect.replace(", n = ", "; n = ")


@dataclass(frozen=True)
class Part:
    """One scale and data set of a record."""

    title: str
    claims: tuple[Row, ...]
    positive: tuple[Row, ...]


@dataclass(frozen=True)
class Record:
    """A file of docs/results."""

    file: str
    title: str
    parts: tuple[Part, ...]


def tables(text: str, heading: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The tables under headings of the third level that begin with ``heading``: names and rows."""
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        lines = [line for line in section.splitlines() if line.startswith("| ")]
        if section.startswith(heading) and len(lines) > 2:
            cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
            yield cells[0], cells[2:]


def read(path: Path) -> Record:
    """A record as it was written by `landscope.report.to_markdown`."""
    head, *rest = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = []
    for section in rest:
        title, _, body = section.partition("\n")
        again = {(row[0], row[2]): row[3] for _, rows in tables(body, "Replication") for row in rows}
        claims = [
            Row(
                row[0],
                row[1],
                dict(zip(names[2:], row[2:], strict=True)),
                again.get((row[0].removesuffix(" (post hoc)"), names[2]), ""),
            )
            for names, rows in tables(body, "Verdicts")
            for row in rows
        ]
        positive = [Row(r[0], r[1], {r[2]: r[3]}) for _, rows in tables(body, "Positive controls") for r in rows]
        if claims or positive:
            parts.append(Part(title.strip(), tuple(claims), tuple(positive)))
    return Record(path.name, head.partition("\n")[0].lstrip("# ").strip(), tuple(parts))


def records(folder: Path) -> list[Record]:
    """All records, in the order of their names."""
    found = [read(path) for path in sorted(folder.glob("*.md")) if path.name != "README.md"]
    return [record for record in found if record.parts]


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table of the scoreboard."""
    names = ["claim", "paper", "ours (interval that decides)", "as published", "controls"]
    return "\n".join("| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *lines]) + "\n"


def short(found: Sequence[Record]) -> str:
    """The scoreboard of the README: of each experiment's first data set, the first claim and those with a number."""
    if not found:
        return ""
    lines = []
    for record in found:
        part, *others = record.parts
        also = f"; also {', '.join(other.title.partition(',')[0] for other in others)}" if others else ""
        lines.append([f"*[{record.title}](docs/results/{record.file})* ({part.title}{also})", "", "", "", ""])
        lines += [row.cells for i, row in enumerate(part.claims) if i == 0 or row.paper != "–"]
    return f"{ABOVE}{table(lines)}\n"


def whole(found: Sequence[Record]) -> str:
    """docs/results/README.md: every claim on every data set."""
    parts, judged = [], [row for record in found for part in record.parts for row in part.claims]
    if judged:
        held = sum(row.cells[3].startswith("**supported**") for row in judged)
        parts.append(
            f"{len(judged)} claims are judged as published, and {held} are supported. Were none of them true, a level "
            f"of 5 % without correction would call about {0.05 * len(judged):.0f} supported; the correction within "
            "each experiment makes that fewer.\n"
        )
    for record in found:
        parts.append(f"## [{record.title}]({record.file})\n")
        for part in record.parts:
            lines = [row.cells for row in part.claims]
            lines += [[f"positive control: {row.claim}", *row.cells[1:4], "–"] for row in part.positive]
            parts.append(f"{part.title[0].upper()}{part.title[1:]}:\n\n{table(lines)}")
    return HEAD + "\n".join(parts or ["No experiment has been recorded yet.\n"])


def written(readme: str, found: Sequence[Record]) -> str:
    """The README with its scoreboard.

    Raises:
        ValueError: where the two marks are not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no place for the scoreboard: it stands between {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{short(found)}{END}{after}"


def outdated(root: Path) -> dict[Path, str]:
    """The files that are not what the records make of them, with what they should be."""
    found = records(root / "docs/results")
    readme, index = root / "README.md", root / "docs/results/README.md"
    wanted = {readme: written(readme.read_text(encoding="utf-8"), found), index: whole(found)}
    return {p: text for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text}


def main() -> int:
    """Write what is outdated, or with ``--check`` name it; the exit code says whether anything is."""
    checking = "--check" in sys.argv[1:]
    wrong = outdated(ROOT)
    for path, text in wrong.items():
        if not checking:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        name = path.relative_to(ROOT)
        print(f"{name}: not what docs/results says; run python docs/scoreboard.py" if checking else f"wrote {name}")
    return 1 if wrong and checking else 0


if __name__ == "__main__":
    sys.exit(main())
