"""What a campaign tries, case by case, and what became of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

REFUSED, HARMLESS, SAID = "refused", "harmless", "said"
ACCEPTED, SLOW = "accepted", "TOO LONG"
SILENT, TRACEBACK, KILLED = "SILENT", "TRACEBACK", "OUT OF MEMORY"
BAD = (SILENT, TRACEBACK, KILLED, SLOW)


@dataclass(frozen=True)
class Case:
    """One fault: the stage (or area) that met it, what was done, the verdict and what was said."""

    area: str
    fault: str
    verdict: str
    said: str


def said(stderr: str, project: Path) -> str:
    """The error line, or the last line of what was said, without the project's place."""
    lines = stderr.strip().splitlines() or [""]
    errors = [line for line in lines if line.startswith("error: ")]
    return re.sub(r"\s+", " ", (errors or lines[-1:])[0].replace(str(project), ""))


def is_refused(code: int, stderr: str, *, of_params: bool = False) -> bool:
    """Exit code 2, one error line, no traceback: what a user should see of any fault; `of_params`: one line for each."""
    lines = stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    one = len(errors) == 1 or (of_params and errors and all(line.startswith("error: params.") for line in errors))
    return code == 2 and bool(one) and lines[-1].startswith("error: ") and "Traceback" not in stderr


def section(title: str, about: str, verdicts: tuple[str, ...], cases: list[Case]) -> list[str]:
    """Markdown: what the cases are, areas and counts of the verdicts, every bad case."""
    lines = [f"## {title}", "", about, "", f"| | {' | '.join(verdicts)} |", f"|---|{'---|' * len(verdicts)}"]
    for area in [*dict.fromkeys(case.area for case in cases), None]:
        counts = Counter(case.verdict for case in cases if area in (case.area, None))
        lines.append(f"| {area or 'all'} | {' | '.join(str(counts[verdict]) for verdict in verdicts)} |")
    bad = [f"- {c.verdict} {c.area}, {c.fault}: `{c.said[:200]}`" for c in cases if c.verdict in BAD]
    return [*lines, "", *bad, *([""] if bad else [])]
