"""What a command prints: tables for people, or one JSON document."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

MINIMUM_WIDTH = 110


def print_json(document: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; numbers stand on the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], int | float) for row in rows)
        table.add_column(
            column, justify="right" if numeric else "left", overflow="fold", no_wrap=i == 0
        )
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console = Console()
    if console.width < MINIMUM_WIDTH:  # a pipe says 80: longer lines are better than broken words
        console = Console(width=MINIMUM_WIDTH)
    console.print(table)


def print_status(document: Mapping[str, Any]) -> None:
    """The status of one pipeline as a table."""
    columns = ("partitions", "complete", "ready", "held", "missing", "waived", "watermark")
    rows = [
        (asset, *(counts[column] for column in columns))
        for asset, counts in document["assets"].items()
    ]
    title = f"{document['pipeline']}, as of {document['as_of']} ({document['clock']} clock)"
    if rows:  # none when only the champion is asked for
        print_table(title, ("asset", *columns), rows)
    for due in document["due"].values():
        print(f"{'STALE' if due['state'] == 'stale' else 'due'}: {due['text']}")
    for failed in document["failed"]:
        print(f"FAILED: {failed['asset']} {failed['partition']}: {failed['reason']}")
    champion = document["champion"]
    if champion is None:
        print("champion: none yet")
    else:
        print(
            f"champion: {champion['model']} version {champion['version']} of {champion['date']} "
            f"({champion['reason']})"
        )


def print_explanation(document: Mapping[str, Any]) -> None:
    """The story of one partition."""
    print(f"{document['asset']} {document['partition']}: {document['state']}")
    print(f"  as of {document['as_of']}")
    print(f"  {document['reason']}")
    for source in document.get("sources", ()):
        line = f"  {source['source']}: {source['observed']} of {source['expected']} hours"
        if source["missing_local"]:
            line += f", missing {source['missing_local']} (local time)"
        print(line)
    for waiver in (document.get("waivers") or {}).values():
        print(f"  under waiver {waiver}")
    for name, reason in (document.get("held") or {}).items():
        print(f"  held {name}: {reason}")
    change = (document.get("environment_change") or {}).get("reason")
    if change:
        print(f"  {change}")
    failed = document.get("failed")
    if failed:
        print(f"  run {failed['run_id']} failed: {failed['cause']}; {failed['reason']}")
    late = document.get("restatement")
    if late:
        print(f"  changed since: {late['partition']}, {late['changed']}")
        print(f"    {late['state']}, {late['reason']}; to do: {late['to_do']}")
    for entry in document["story"]:
        clock = "" if entry["clock"] == "machine" else " on the pipeline's clock"
        print(f"  {entry['at'][:19]}Z{clock} {entry['kind']}: {entry['text']}")


def print_drill(document: Mapping[str, Any]) -> None:
    """What a drill did on either side, what it measured, and its verdict."""
    print(f"{document['name']}: {document['question']}")
    for title, side in (("plain Dagster", "plain"), ("Signalbox", "signalbox")):
        rows = [("ok" if s["ok"] else "NOT", s["did"], s["found"]) for s in document[side]]
        print_table(title, ("", "what was done", "what happened"), rows)
    if document["figures"]:
        figures = [
            (f["what"], *(_figure(f[side], f["unit"]) for side in ("ideal", "plain", "signalbox")))
            for f in document["figures"]
        ]
        print_table("measured", ("what", "undisturbed", "plain Dagster", "Signalbox"), figures)
    columns = ("metric", "without", "difference", "interval", "days", "it is")
    compared: dict[str, list[tuple[object, ...]]] = {}
    for m in document["measurements"]:
        row = (
            f"{m['metric']}, {m['better']} is better",
            f"{m['reference']:.4f}",
            f"{m['mean']:+.5f}",
            f"{m['low']:+.5f} to {m['high']:+.5f}",
            m["n"],
            m["conclusion"],
        )
        compared.setdefault(m["what"], []).append(row)
    for what, found in compared.items():
        print_table(what, columns, found)
    for note in document["notes"]:
        print(note)
    spent = "; ".join(f"{name} {seconds:.0f} s" for name, seconds in document["seconds"].items())
    print(f"time: {spent}")
    if document["home"]:
        print(f"home: {document['home']}")
    print(document["verdict"])


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    shown = f"{value:.0f}" if value == int(value) else f"{value:.4g}"
    return f"{shown} {unit}".strip()
