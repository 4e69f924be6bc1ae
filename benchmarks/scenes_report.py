"""The tables of the scenes, from the lines of the results, and two pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import days_of, machines_of
from benchmarks.scenes_arms import DEEPEST
from benchmarks.scenes_chance import random_share
from benchmarks.scenes_data import Scene, pyramid_of
from pyrtrav.explain.overlay import draw_overlay
from pyrtrav.files import written_whole
from pyrtrav.predict import Predictor

Record = dict[str, Any]


INTRODUCTION = """\
Made by `python -m benchmarks.scenes report`, from the runs of `python -m benchmarks.scenes run`; what the task is and
what the tables say: [topdown.md](topdown.md#a-real-task). 660 scenes of the German Traffic Sign Detection Benchmark
(Houben et al., 2013), tested on folds that the training did not see; minutes of training are those of a busy machine.
"""


class Group:
    """All folds and seeds of a method in a track, under the same settings."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = sorted(records, key=lambda record: (record["seed"], record["fold"]))
        self.rows: list[Record] = [row for record in records for row in record["rows"]]
        first = self.records[0]
        self.track, self.arm, self.settings = first["track"], first["arm"], first["settings"]
        share = first["hint_share"]
        self.name = self.arm if share in (0.0, 1.0) else f"{self.arm}, {share:.0%} hinted"

    @property
    def runs(self) -> str:
        folds = {record["fold"] for record in self.records}
        seeds = {record["seed"] for record in self.records}
        return f"{len(folds)}" if len(seeds) == 1 else f"{len(folds)} x {len(seeds)} seeds"

    def accuracies(self) -> list[float]:
        """Of each run."""
        return [float(np.mean([right(row) for row in record["rows"]])) for record in self.records]

    def recall(self, label: str) -> float:
        return float(np.mean([right(row) for row in self.rows if row["label"] == label]))

    def mean(self, name: str) -> float:
        return float(np.mean([row[name] for row in self.rows]))

    def seen(self, *, deciding: bool) -> float:
        """Share of the signs that a cell of the deepest level shows."""
        signs = [shown for row in self.rows for decides, shown in row["signs"] if decides or not deciding]
        return float(np.mean(signs)) if signs else float("nan")


def right(row: Record) -> bool:
    return bool(row["label"] == row["predicted"])


def group(records: Iterable[Record]) -> list[Group]:
    """Runs that differ in fold and seed alone stand together, in the order of tracks and methods."""
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        key = record["track"], record["arm"], record["hint_share"], tuple(record["settings"])
        groups[key].append(record)
    return [Group(found) for found in groups.values()]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table, numbers flush right."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def markdown(records: Sequence[Record], scenes: Sequence[Scene]) -> str:
    """Return all tables."""
    if not records:
        return "No results yet: python -m benchmarks.scenes run\n"
    groups, labels = group(records), sorted({scene.label for scene in scenes})
    parts = ["# Street scenes\n", INTRODUCTION]
    for track in dict.fromkeys(found.track for found in groups):
        own = [found for found in groups if found.track == track]
        parts += [f"### Track: {track}\n", _accuracy(own, labels), _recalls(own, labels)]
    looking = [found for found in groups if all("signs" in row for row in found.rows)]
    if looking:
        parts += ["### Where it looks\n", _attention(looking, scenes), _by_depth(looking)]
    parts += ["### Settings\n", _settings(groups)]
    return "\n".join(parts)


def _accuracy(groups: Sequence[Group], labels: Sequence[str]) -> str:
    rows = []
    for found in groups:
        accuracies = found.accuracies()
        minutes = np.mean([record["training"]["seconds"] for record in found.records]) / 60
        rows.append(
            (
                found.name,
                found.runs,
                f"{len(found.rows)}",
                f"{np.mean([right(row) for row in found.rows]):.3f}",
                f"{np.std(accuracies, ddof=1):.3f}" if len(accuracies) > 1 else "-",
                f"{np.mean([found.recall(label) for label in labels]):.3f}",
                f"{found.mean('pixels_decoded') / 1e6:.2f}",
                f"{found.mean('pixels_encoded') / 1e6:.3f}",
                f"{found.mean('macs') / 1e6:,.0f}",
                f"{found.mean('seconds'):.3f}",
                f"{minutes:.1f}",
            )
        )
    header = ("method", "folds", "scenes", "accuracy", "sd of runs", "balanced accuracy", "Mpx decoded", "Mpx encoded")
    return table((*header, "million MACs", "seconds", "minutes of training"), rows)


def _recalls(groups: Sequence[Group], labels: Sequence[str]) -> str:
    rows = ((found.name, *(f"{found.recall(label):.3f}" for label in labels)) for found in groups)
    return table(("recall", *labels), rows)


def _attention(groups: Sequence[Group], scenes: Sequence[Scene]) -> str:
    rows = []
    for found in groups:
        cells = np.mean([row["cells"] for row in found.rows], axis=0)
        names = {row["scene"] for row in found.rows}
        own = [scene for scene in scenes if scene.name in names]
        rows.append(
            (
                f"{found.name} ({found.track})",
                ", ".join(f"{count:.1f}" for count in cells),
                *(
                    f"{share:.3f}"
                    for deciding in (True, False)
                    for share in (found.seen(deciding=deciding), random_share(own, cells, deciding=deciding))
                ),
            )
        )
    header = (
        "method",
        f"cells at depths 1 to {DEEPEST}",
        "deciding signs shown",
        "by chance",
        "all signs",
        "by chance",
    )
    text = (
        f"Signs that a cell attended at depth {DEEPEST} shows: it holds the sign's centre, or half of what it could "
        "hold of it. By chance: a random policy that attends as many cells at every depth.\n\n"
    )
    return text + table(header, rows)


def _by_depth(groups: Sequence[Group]) -> str:
    rows = []
    for found in groups:
        depths = [
            np.mean([row["by_depth"][min(depth, len(row["by_depth"]) - 1)] == row["label"] for row in found.rows])
            for depth in range(DEEPEST + 1)
        ]
        rows.append((f"{found.name} ({found.track})", *(f"{accuracy:.3f}" for accuracy in depths)))
    return table(("accuracy of a run that stops at depth", *map(str, range(DEEPEST + 1))), rows)


def _settings(groups: Sequence[Group]) -> str:
    lines = []
    for found in groups:
        last = found.records[-1]
        lines.append(
            f"- {found.name} ({found.track}): `{' '.join(found.settings)}`; seeds "
            f"{', '.join(map(str, sorted({record['seed'] for record in found.records})))}; "
            f"{last['hinted_images']} scenes with hints; {machines_of(found.records)}; {days_of(found.records)}"
        )
    return "\n".join(lines) + "\n"


def draw_pictures(records: Sequence[Record], work: Path, out: Path) -> list[Path]:
    """Draw a scene with a sign that was classified rightly and one that was not: of the last run of topdown with hints.

    Without such a run, of the last one that had labels alone.
    """
    looking = [record for record in records if record["arm"] == "topdown"]
    if not looking:
        return []
    record = max(enumerate(looking), key=lambda run: (run[1]["track"] == "hints", run[0]))[1]
    with_signs = [row for row in record["rows"] if any(decides for decides, _ in row["signs"])]
    # A label may be right by luck: scenes whose sign was seen come first.
    with_signs.sort(key=lambda row: not any(decides and shown for decides, shown in row["signs"]))
    predictor = Predictor(record["model"])
    drawn = []
    for name, wanted in (("right", True), ("wrong", False)):
        for row in [row for row in with_signs if right(row) == wanted][:1]:
            source, target = pyramid_of(work, row["scene"]), out / f"scenes-{name}.jpg"
            tree = predictor.explain(source)
            with predictor.open(source) as pyramid, written_whole(target) as beside:
                draw_overlay(tree, pyramid, width=1000).save(beside, format="JPEG", quality=85)
            drawn.append(target)
    return drawn
