"""Checks what the demo left behind: ``check_demo.py FOLDER REPORT_JSON`` exits 1 with every fault it finds."""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

FIELDS = ("text", "effect", "low", "high", "p_adjusted", "verdict", "paper", "n", "control")
VERDICTS = ("supported", "contradicted", "inconclusive", "not testable")
LEAST_SEEDS = 8
CONTROLS = 3
LEAST_BYTES = 100_000


def faults(report: dict[str, Any]) -> list[str]:
    """What is wrong with the facts that ``landscope report --json`` printed."""
    found = [
        f"the report has no {name!r}" for name in ("experiment", "scale", "data", "claims") if not report.get(name)
    ]
    protocols = defaultdict(list)
    for entry in report.get("claims") or ():
        missing = [name for name in FIELDS if name not in entry]
        if missing:
            found.append(f"an entry of claims lacks {', '.join(missing)}: {entry}")
            continue
        protocols[entry["text"]].append(entry["control"])
        found += [f"{entry['text']!r}, {entry['control'] or 'published'}: {fault}" for fault in _entry_faults(entry)]
    for text, controls in protocols.items():
        named = [control for control in controls if control is not None]
        if len(controls) - len(named) != 1 or len(named) < CONTROLS or len(set(named)) != len(named):
            found.append(
                f"{text!r}: one published protocol and {CONTROLS} different controls are needed, not {controls}"
            )
    return found


def _entry_faults(entry: dict[str, Any]) -> list[str]:
    found = []
    if entry["verdict"] not in VERDICTS:
        found.append(f"the verdict is {entry['verdict']!r}, none of {', '.join(VERDICTS)}")
    if entry["control"] is None and not (isinstance(entry["n"], int) and entry["n"] >= LEAST_SEEDS):
        found.append(f"{entry['n']} seeds, at least {LEAST_SEEDS} are needed")
    if entry["verdict"] in ("supported", "contradicted", "inconclusive"):
        numbers = [entry[name] for name in ("low", "effect", "high", "p_adjusted")]
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            found.append(f"a verdict without finite numbers: {numbers}")
        elif not (numbers[0] <= numbers[1] <= numbers[2] and 0 <= numbers[3] <= 1):
            found.append(f"the interval does not hold the effect, or p is no probability: {numbers}")
    return found


def main(folder: Path, facts: Path) -> int:
    """Check both, print what was found, give the exit code."""
    pages = {page: page.stat().st_size for page in folder.rglob("*.html")}
    found = (
        [] if any(size > LEAST_BYTES for size in pages.values()) else [f"no report of 100 kB under {folder}: {pages}"]
    )
    report = json.loads(facts.read_text(encoding="utf-8"))
    found += faults(report)
    for fault in found:
        print(f"demo: {fault}", file=sys.stderr)
    for entry in report.get("claims") or () if not found else ():
        print(f"demo: {entry['verdict']:13} {entry['control'] or 'published':22} n={entry['n']}  {entry['text']}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
