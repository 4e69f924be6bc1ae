"""What a command line says of robustness, as a plan; and where the report goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pyrtrav.errors import ConfigError
from pyrtrav.files import make_folder, written_whole
from pyrtrav.robustness.attack import Attack
from pyrtrav.robustness.chart import save_robustness
from pyrtrav.robustness.report import Plan, Report


def make_plan(
    *,
    corruptions: bool = False,
    attack: str | None = None,
    eps: str | None = None,
    step: float | None = None,
    steps: str | None = None,
    side: int | None = None,
    seed: int = 0,
) -> Plan | None:
    """Return how pictures are to be changed, or None where nothing is said of it.

    Raises:
        ConfigError: options that say nothing together, or nothing sensible.
    """
    for name, value in (("eps", eps), ("step", step), ("steps", steps)):
        if value is not None and attack is None:
            raise ConfigError(f"--{name} goes with --attack")
    if not corruptions and attack is None:
        if side is not None:
            raise ConfigError("--side goes with --corruptions or --attack")
        return None
    return Plan(corruptions, None if attack is None else _attack(attack, eps, step, steps), side, seed)


def _attack(name: str, eps: str | None, step: float | None, steps: str | None) -> Attack:
    if name == "fgsm" and step is not None:
        raise ConfigError("fgsm takes one step, of eps: --step goes with pgd and pgd-paper")
    given = Attack()
    try:
        levels = given.eps if eps is None else tuple(sorted({float(part) for part in eps.split(",")}))
        counts = given.steps if steps is None else tuple(sorted({int(part) for part in steps.split(",")}))
    except ValueError as error:
        raise ConfigError(f"--eps is numbers such as 1,2,4 and --steps whole ones; {error}") from error
    if name != "pgd-paper" and any(level % 1 for level in levels):
        raise ConfigError(f"--eps of {name} is in whole 255ths: what is judged is an image of bytes; got {eps}")
    if name == "fgsm" and steps is None:
        counts = (1,)
    return Attack(name, levels, given.step if step is None else step, counts)


def write_robustness(report: Report, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write report and picture into a folder, each whole or not at all; returns the files by what they are.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    out = make_folder(folder)
    files = {"report": out / "robustness.json", "picture": out / "robustness.png"}
    with written_whole(files["report"]) as beside:
        beside.write_text(json.dumps(report, indent=1) + "\n", encoding="ascii")
    save_robustness(report, files["picture"])
    return files
