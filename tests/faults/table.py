"""The table of faults, made from the rows of a run. `docs/faults.md` is what comes out."""

from collections.abc import Sequence
from typing import Any

HEAD = """# Every fault that was tried

Made by the fault suite: `pytest tests/faults -m faults -n 4 --faults-table docs/faults.md`. Each row was tried: a real process
of the service under load (some eight messages a second), real processes and sockets broken. The run fails, and no table is
written, when a row does not hold.

- **lost**: messages that were sent and never processed. **stranded**: still invisible when everything was over, leases
  included. **twice at once**: processed by two at the same time. All three are 0 in every row, or the row fails.
- **again**: messages that were processed a second time, and why (SQS delivers at least once; each has its reason in the log).
- **recovery**: seconds from the end of the fault until the service did again what the fault had kept it from. A message that
  was on its way in an answer that broke off comes back when its lease is over (10 s in these trials).
- **calls/s**: calls of the one instance while the fault lasted, for `/health` included (empty where nothing listens: such an
  attempt leaves no trace). **CPU**: of one core, in that time.
- **memory**, **files**: MiB resident and open file descriptors, before and after.
"""


def text(rows: Sequence[dict[str, Any]], groups: Sequence[str], foot: str) -> str:
    parts = [HEAD]
    for group in groups:
        own = [row for row in rows if row["group"] == group]
        if own:
            parts.append(_table(group, own))
    parts.append(_lines(rows))
    parts.append(foot)
    return "\n".join(parts)


def _table(group: str, rows: Sequence[dict[str, Any]]) -> str:
    head = [
        "fault",
        "what one sees",
        "sent",
        "lost",
        "stranded",
        "twice at once",
        "again",
        "recovery",
        "calls/s",
        "CPU",
    ]
    lines = [
        f"## {group}\n",
        "| " + " | ".join([*head, "memory", "files"]) + " |",
        "|" + " --- |" * 2 + " ---: |" * (len(head)),
    ]
    for row in rows:
        again = str(row["duplicates"]) + (f" ({row['why_duplicates']})" if row["why_duplicates"] else "")
        cells = [
            row["fault"],
            row["sees"],
            row["sent"],
            row["lost"],
            row["stranded"],
            row["doubled"],
            again,
            _figure(row["recovery"], " s"),
            _figure(row["calls_per_second"]),
            "" if row["cpu"] is None else f"{100 * row['cpu']:.0f} %",
            _pair(row["memory"], "{:.0f}"),
            _pair(row["files"], "{}"),
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    """Which line of the log names what, and which says that it is over."""
    seen: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["named"]:
            seen.setdefault((row["named"], row["over"]), []).append(row["fault"])
    lines = [
        "## In the log\n",
        "What is not listed needs no line (work goes on as before: clients, the clock, odd results), or can leave none (SIGKILL,",
        "a log that cannot be written).\n",
        "| the line that names it | the line that says it is over | faults |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| `{named}` | {f'`{over}`' if over else ''} | {'; '.join(faults)} |" for (named, over), faults in seen.items()
    ]
    return "\n".join(lines) + "\n"


def _figure(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:g}{unit}"


def _pair(pair: Sequence[float] | None, form: str) -> str:
    return "" if pair is None else " → ".join(form.format(value) for value in pair)
