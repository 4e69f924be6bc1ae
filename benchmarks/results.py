"""Results as lines of JSON, one a job: a run that was interrupted does what has no line yet."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyrtrav import __version__
from pyrtrav.files import append_line

Row = dict[str, Any]
"""``name`` says of which job; `made_here` is part of it."""


def read_results(path: Path) -> list[Row]:
    """The results so far, the last one of each name; lines that a crash has torn, or that name no job, are left out."""
    if not path.exists():
        return []
    found: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError):
            row = json.loads(line)
            found[row["name"]] = row
    return list(found.values())


def append_result(path: Path, row: Row) -> None:
    """Append a result as a line of its own, also behind one that a crash has torn."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        append_line(path, "")
    append_line(path, json.dumps(row))


def made_here(device: str = "cpu") -> Row:
    """By what command a result is made, when, and on what."""
    import torch  # late: benchmarks.scenes sets up its memory first

    cpu = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu,
        "torch": torch.__version__,
        "pyrtrav": __version__,
    }


def commands_of(rows: Iterable[Row]) -> list[str]:
    """The commands that made results, each once."""
    return sorted({row["command"] for row in rows})


def days_of(rows: Iterable[Row]) -> str:
    """The day on which results were made, or the first and the last one."""
    days = sorted({row["date"][:10] for row in rows})
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def machines_of(rows: Iterable[Row]) -> str:
    """What results were made on, each once."""
    return "; ".join(sorted({", ".join([row["machine"], *_software(row)]) for row in rows}))


def _software(row: Row) -> list[str]:
    return [f"{name} {row[name]}" for name in ("torch", "pyrtrav") if name in row]
