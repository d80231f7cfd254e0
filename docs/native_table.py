"""Print the rows of `boxseg bench-native --json FILE` as a table in Markdown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from boxseg.runtime.native_benchmark import Row, verdict


def number(value: float | None) -> str:
    """Format a number with three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(row: Row) -> str:
    """Return a row of the table."""
    limits = "" if row.floor is None else f"{number(row.floor)} / {number(row.goal)}"
    ratio = "" if row.ratio is None else f"{row.ratio:.1f}"
    exact = {True: "yes", False: "NO", None: ""}[row.exact]
    cells = (
        row.part,
        row.case,
        number(row.ours_us),
        row.peer or "",
        number(row.peer_us),
        ratio,
        limits,
        verdict(row),
        exact,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table of the file given on the command line."""
    rows = [Row(**values) for values in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
    print(
        "| part | case | ours, us | fastest peer | peer, us | ratio | floor / goal | is | exact |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(line(row))


if __name__ == "__main__":
    main()
