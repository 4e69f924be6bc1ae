"""Tables 2 and 3 of the multigrid paper, its claims, and pictures as its figures 4 and 5, from the results.

    python -m benchmarks.multigrid_report runs/multigrid_pixels/results.jsonl --out docs/multigrid_tasks.md \\
        --figure docs/multigrid_tasks.png

Several files of results make one page; a task has a table for each of its schedules. The picture is of each network's
longest training and needs the weights, which training leaves beside the results, and MNIST.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.mnist_images import data_folder
from benchmarks.multigrid_figure import draw_examples
from benchmarks.pixel_scenes import TASKS
from benchmarks.pixel_train import SHORT_LR
from benchmarks.results import commands_of, days_of, machines_of, read_results
from pyrtrav.encoders.multigrid import PIXEL_NETWORKS
from pyrtrav.files import written_whole

Row = dict[str, Any]

PAPER = {
    "segmentation": {
        "U-NET-11": (0.5846, 0.2214),
        "U-MG-11": (0.5802, 0.2145),
        "SG-11": (0.3221, 0.2233),
        "R-SG-20": (0.6986, 0.1443),
        "PMG-11": (0.6188, 0.1475),
        "R-PMG-20": (0.8191, 0.0889),
    },
    "transformation": {
        "U-NET-11": (0.1220, 0.3755),
        "SG-11": (0.0, 1.0),
        "R-SG-20": (0.0, 0.8298),
        "PMG-11": (0.5064, 0.2920),
        "R-PMG-20": (0.5561, 0.2559),
    },
}
"""Mean IoU and mean error: tables 2 and 3."""

LEVEL = 0.01
"""Mean IoU that differ by less are called level: that decides nothing."""
LEARNED = 0.45
"""Mean IoU from which on a transformation is called learned; the paper has 51 per cent and more, or 12 and less.

On 1,000 test scenes the input itself has up to 0.41, where it is centred, and the best single picture for all 0.40.
"""

SEGMENTED = 0.15
"""Mean IoU below which nothing is learned of segmentation: all ten digits on every lit pixel have 0.10."""

VERDICTS = f"""\
A verdict is of the longest schedule by which all networks of the claim were trained. Undecided are mean IoU that
differ by less than {100 * LEVEL:g} point, or are both below {100 * SEGMENTED:g} in segmentation (all ten digits on
every lit pixel have 10), and a transformation that no network learned: {100 * LEARNED:g} or more, since the input
itself has up to 41 (where it is centred), and one picture for all scenes 40 at best."""

PROGRESSIVE = ("PMG-11", "R-PMG-20")
OTHERS = ("U-NET-11", "SG-11", "R-SG-20")
"""The networks of table 3 that are said to fail."""

INTRODUCTION = """\
Made by `python -m benchmarks.multigrid_report`, from runs of `python -m benchmarks.multigrid_pixels`: networks with an
output for every pixel learn to say which digits lie where (Ke, Maire, Yu, 2017, section 4.2), and to put a digit that
was moved, turned, scaled and sheared back as it was (section 4.3). What the paper leaves open is as in the authors'
code, and said in `benchmarks/pixel_scenes.py`.

IoU and error are the paper's: outputs of a half or more are labels, all test pixels are counted together for each
output, and the ten digits' shares averaged; background is no class. Its "mean Error" is the share of labels that are
wrong (1 - precision), as in the authors' notebook, and says nothing of what is left out: *missed* is the share of the
digits' pixels that have no label, and pixels are *right* where every output is. All in per cent.

Of residual networks the paper's learning rate stays high for longer, which favours them in runs of few iterations: the
sum of their rates is 2.5 times as large. *Short* runs have Adam and one schedule for all instead. In PMG and R-PMG some
coarse outputs of the last sections are never read, as the paper's parameter counts ask.
"""


class MissingError(Exception):
    """Networks that a claim needs are not trained yet."""


class Results:
    """The results of all tasks, by one schedule each; means over seeds."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def of(self, task: str, network: str) -> list[Row]:
        return [row for row in self.rows if (row["task"], row["network"]) == (task, network)]

    def mean(self, task: str, network: str, name: str = "iou") -> float:
        """Return a figure of one network that there are results of."""
        return float(mean(row[name] for row in self.of(task, network)))


Verdict = tuple[bool | None, str]


@dataclass(frozen=True)
class Claim:
    """What the paper says, the networks by task that it is about, and what decides it from their results."""

    task: str
    text: str
    needs: dict[str, tuple[str, ...]]
    decide: Callable[[Results], Verdict]


def by_schedule(rows: Sequence[Row], task: str) -> list[list[Row]]:
    """Return the results of a task, a list for each schedule, the longest first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["task"] == task:
            found.setdefault(described(row["schedule"]), []).append(row)
    return sorted(found.values(), key=lambda own: -own[0]["schedule"]["iterations"])


def evidence(rows: Sequence[Row], needs: dict[str, tuple[str, ...]]) -> list[Row]:
    """Return, of each task, the results of the longest schedule by which all its networks were trained.

    Raises:
        MissingError: there is no such schedule of a task.
    """
    found: list[Row] = []
    for task, networks in needs.items():
        known = by_schedule(rows, task) or [[]]
        lacking = [[name for name in networks if name not in {row["network"] for row in own}] for own in known]
        best = min(range(len(known)), key=lambda place: len(lacking[place]))
        if lacking[best]:
            raise MissingError(", ".join(f"{name} on {task}" for name in lacking[best]))
        found += known[best]
    return found


def per_cent(value: float) -> str:
    return f"{100 * value:.2f}"


def _above(found: Results, upper: str, lower: str) -> Verdict:
    """Whether one network is above another in segmentation; None where they are level."""
    first, second = found.mean("segmentation", upper), found.mean("segmentation", lower)
    text = f"{upper} {per_cent(first)}, {lower} {per_cent(second)}"
    if max(first, second) < SEGMENTED:
        return None, f"{text}: neither learned it"
    return (None if abs(first - second) < LEVEL else first > second), text


def _only(found: Results, task: str, able: Sequence[str], unable: Sequence[str]) -> Verdict:
    """Whether some networks learn a task that the others do not; None where not all of the able do, or nobody does."""
    values = {network: found.mean(task, network) for network in (*able, *unable)}
    text = ", ".join(f"{network} {per_cent(value)}" for network, value in values.items())
    learned = {network for network, value in values.items() if value >= LEARNED}
    if learned & set(unable):
        return False, text
    if not learned:
        return None, f"{text}: none learned it"
    return (True, text) if learned == set(able) else (None, f"{text}: not all of the able learned it yet")


def _turns(found: Results) -> Verdict:
    """Whether U-NET undoes rotation and shear, and no translation."""
    values = [found.mean(task, "U-NET-11") for task in ("rotation", "affine", "translation")]
    text = "U-NET-11: rotation {}, affine {}, translation {}".format(*map(per_cent, values))
    if max(values) < LEARNED:
        return None, f"{text}: none is learned"
    if values[2] >= LEARNED:
        return False, text
    return (True, text) if min(values[:2]) >= LEARNED else (None, f"{text}: not both are learned yet")


def _comparison(upper: str, lower: str, text: str) -> Claim:
    return Claim("segmentation", text, {"segmentation": (upper, lower)}, lambda found: _above(found, upper, lower))


def _exception(task: str, able: tuple[str, ...], unable: tuple[str, ...], text: str) -> Claim:
    return Claim(task, text, {task: (*able, *unable)}, lambda found: _only(found, task, able, unable))


CLAIMS = [
    _comparison("PMG-11", "U-NET-11", "progressive is above U-NET"),
    _comparison("R-PMG-20", "U-NET-11", "progressive with residual units is above U-NET"),
    _comparison("R-PMG-20", "R-SG-20", "R-PMG is above R-SG"),
    _comparison("PMG-11", "SG-11", "PMG is above SG"),
    _exception("transformation", PROGRESSIVE, OTHERS, "only progressive networks learn it"),
    _exception("translation", ("PMG-11",), ("U-NET-11",), "PMG learns it, U-NET does not"),
    _exception("translation", ("R-PMG-20",), ("U-NET-11",), "R-PMG learns it, U-NET does not"),
    Claim(
        "rotation",
        "U-NET learns to undo it and shear, and not translation",
        dict.fromkeys(("rotation", "affine", "translation"), ("U-NET-11",)),
        _turns,
    ),
]
"""What sections 4.2 and 4.3 say."""


def claims_table(rows: Sequence[Row]) -> str:
    """The claims as a markdown table."""
    lines = ["| | task | claim | here: mean IoU | iterations | |", "|---" * 6 + "|"]
    for number, claim in enumerate(CLAIMS, 1):
        try:
            found = evidence(rows, claim.needs)
            held, text = claim.decide(Results(found))
            verdict = {True: "reproduced", False: "**not reproduced**", None: "undecided"}[held]
            iterations = ", ".join(f"{number:,}" for number in sorted({r["schedule"]["iterations"] for r in found}))
        except MissingError as missing:
            verdict, text, iterations = "undecided", f"not trained yet: {missing}", ""
        lines.append(f"| {number} | {claim.task} | {claim.text} | {text} | {iterations} | {verdict} |")
    return "\n".join(lines)


def task_table(rows: Sequence[Row], task: str, trained: Collection[str]) -> str:
    """The networks of one task and schedule beside the paper's.

    Args:
        trained: the networks that were, by this schedule or another.
    """
    found, paper = Results(rows), PAPER.get(task, {})
    lines = [
        "| network | params, million | GMAC | IoU | the paper's | error | the paper's | missed | right | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for network in PIXEL_NETWORKS:
        own = found.of(task, network)
        theirs = [per_cent(value) for value in paper.get(network, ())] or ["", ""]
        if not own and (network in trained or network not in paper):
            continue
        if not own:
            lines.append(f"| {network} | | | not trained yet | {theirs[0]} | | {theirs[1]} | | | |")
            continue
        iou, error, missed, pixels = (
            per_cent(found.mean(task, network, name)) for name in ("iou", "error", "missed", "pixels")
        )
        cost = f"{own[0]['parameters'] / 1e6:.2f} | {own[0]['macs'] / 1e9:.2f}"
        minutes = f"{found.mean(task, network, 'seconds') / 60:.1f}"
        lines.append(
            f"| {network} | {cost} | {iou} | {theirs[0]} | {error} | {theirs[1]} | {missed} | {pixels} | {minutes} |"
        )
    return "\n".join(lines)


def described(schedule: dict[str, Any]) -> str:
    """A schedule in words."""
    shown = dict(schedule)
    short = shown.pop("short", False)
    if short:
        for name in ("lr", "momentum", "weight_decay"):
            del shown[name]
    text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
    return text + (f", short: Adam from {SHORT_LR:g}, falling evenly to zero" if short else "")


def provenance(rows: Sequence[Row]) -> str:
    """Where the numbers of one task and schedule come from."""
    schedule, wanted = rows[0]["schedule"], 200 * TASKS[rows[0]["task"]].iterations_per_epoch
    seeds = sorted({row["seed"] for row in rows})
    commands = "\n".join(f"    {command}" for command in commands_of(rows))
    return (
        f"{described(schedule)}: {schedule['iterations'] / wanted:.1%} of the paper's {wanted:,} iterations. "
        f"Seeds {seeds}; {days_of(rows)}; {machines_of(rows)}. Minutes are those of training; the machine may have had "
        f"other work.\n\n{commands}"
    )


def markdown(rows: Sequence[Row], figure: str | None = None) -> str:
    """Return the page.

    Args:
        figure: file name of the picture.
    """
    parts = ["# Multigrid networks for pixels", INTRODUCTION.strip(), "## Claims", claims_table(rows), VERDICTS]
    for task in TASKS:
        for own in by_schedule(rows, task):
            title = f"## {task.capitalize()}, {own[0]['schedule']['iterations']:,} iterations"
            parts += [
                title,
                provenance(own),
                task_table(own, task, {row["network"] for row in rows if row["task"] == task}),
            ]
    if figure is not None:
        caption = "Inputs, targets and the networks' outputs on test scenes, each after its longest training."
        parts += ["## Examples", f"![{caption}]({figure})"]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="write the page there (default: print it)")
    parser.add_argument("--figure", type=Path, help="write examples there, as PNG")
    parser.add_argument("--examples", type=int, default=5, help="scenes of each task in the picture")
    parser.add_argument("--data", type=Path, default=data_folder(), help="with mnist/ (default: PYRTRAV_DATA)")
    asked = parser.parse_args()
    rows = []
    for path in asked.results:
        own = read_results(path)
        if not own:
            parser.error(f"{path}: holds no results; run `python -m benchmarks.multigrid_pixels` first")
        rows += [row | {"weights": path.parent / f"{row['name']}.safetensors"} for row in own]
    if asked.figure is not None:
        longest: dict[tuple[str, str], Row] = {}
        for row in (row for task in TASKS for own in by_schedule(rows, task) for row in own):
            longest.setdefault((row["task"], row["network"]), row)
        missing = [str(row["weights"]) for row in longest.values() if not row["weights"].exists()]
        if missing:
            parser.error(f"--figure: there are no weights {', '.join(missing)}; take results where they were made")
        if not (asked.data / "mnist").is_dir():
            parser.error(f"--data: {asked.data} holds no folder mnist with the IDX files")
        picture = draw_examples(list(longest.values()), asked.data, asked.examples)
        with written_whole(asked.figure) as beside:
            picture.save(beside, "PNG")
    text = markdown(rows, asked.figure.name if asked.figure else None)
    if asked.out is None:
        print(text)
        return
    with written_whole(asked.out) as beside:
        beside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
