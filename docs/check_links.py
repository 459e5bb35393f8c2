"""Checks every relative link and anchor in the project's Markdown files: ``python docs/check_links.py``."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
# What stands before "](" does not matter, so a picture inside a link counts as two.
LINK = re.compile(r"\]\(\s*<?([^()\s<>]*(?:\([^()\s]*\)[^()\s<>]*)*)>?(?:\s+[\"'(][^)]*)?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?([^\s>]+)>?")
HTML = re.compile(r"<(?:a|img|source)\s[^>]*?(?:href|src|srcset)=[\"']([^\"']+)[\"']")
NAMED = re.compile(r"<[a-z]+\s[^>]*?(?:id|name)=[\"']([^\"']+)[\"']")
SKIPPED = {"node_modules", "vendor", "runs", "demo", "dist", "exports"}


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The numbered lines outside fenced code, with inline code emptied."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip(" " + fence[0]):
                fence = ""
        elif mark:
            fence = mark[1]
        else:
            yield number, line


def without_code(line: str) -> str:
    """The line with inline code removed: what stands there is no link."""
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", line)


def anchors(text: str) -> set[str]:
    """The anchors of a page as GitHub makes them: a heading met again gets ``-1``, ``-2`` and so on."""
    found: set[str] = set()
    for _, line in prose(text):
        found.update(NAMED.findall(line))
        heading = HEADING.match(line)
        if heading:
            words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"<[^>]*>", "", heading[1]))
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            again = slug
            count = 0
            while again in found:
                count += 1
                again = f"{slug}-{count}"
            found.add(again)
    return found


def links(text: str) -> Iterator[tuple[int, str]]:
    """Every link's line number and target."""
    for number, line in prose(text):
        shown = without_code(line)
        for pattern in (LINK, REFERENCE, HTML):
            yield from ((number, target) for target in pattern.findall(shown))


def broken(root: Path) -> list[str]:
    """Every relative link under ``root`` that leads nowhere, as ``file:line: why``."""
    pages = [
        p for p in root.rglob("*.md") if not any(x in SKIPPED or x.startswith(".") for x in p.relative_to(root).parts)
    ]
    found = []
    for page in sorted(pages):
        for number, target in links(page.read_text(encoding="utf-8")):
            if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", target):
                continue
            path, _, anchor = target.partition("#")
            base = root if path.startswith("/") else page.parent
            file = (base / unquote(path).lstrip("/")).resolve() if path else page
            where = f"{page.relative_to(root)}:{number}: {target}"
            if not file.is_relative_to(root.resolve()):
                found.append(f"{where}: leads out of the project")
            elif not file.exists():
                found.append(f"{where}: there is no such file")
            elif anchor and file.suffix == ".md" and unquote(anchor) not in anchors(file.read_text(encoding="utf-8")):
                found.append(f"{where}: that page has no such heading")
    return found


def main() -> int:
    """Print what is broken; the exit code says whether anything is."""
    faults = broken(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve())
    print("\n".join(faults) or "every relative link and anchor leads somewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
