"""``pyrtrav doctor``: what is wrong with an installation or a file, and what to do."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from pyrtrav.cli import options as o
from pyrtrav.cli.render import stdout, table


def doctor(
    image: Annotated[Path | None, typer.Argument(help="Examine this image instead.", show_default=False)] = None,
    as_json: o.Json = False,
) -> None:
    """Show versions, formats that open, device and threads; exits with 1 where something is broken.

    Example: pyrtrav doctor slide.svs
    """
    from pyrtrav import doctor as examiner

    report = examiner.diagnose() if image is None else examiner.Report(tuple(examiner.check_file(image)), ())
    checks, formats, status = report.checks, report.formats, report.status
    if as_json:
        found = {"checks": checks, "formats": formats}
        plain = {name: [dataclasses.asdict(item) for item in items] for name, items in found.items()}
        typer.echo(json.dumps({"status": status, **plain}))
    else:
        rows = [(check.name, check.found, check.status, check.advice or "") for check in checks]
        stdout.print(table(("", "found", "status", "what to do"), rows))
        if formats:
            rows = [(f.name, f.backend, f.missing or "opens") for f in formats]
            stdout.print(table(("format", "backend", "status"), rows))
    if status == "problem":
        raise typer.Exit(1)
