"""The street scenes as tiled pyramids, in folds, with the boxes of their signs.

The scenes are plain JPEGs: they are converted once, so that pixels decoded can be told from pixels in the file. The
folds are by hash within each class, so that they depend on nothing but the names. Scenes may stem from the same drive;
the data say nothing about that.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pyrtrav.files import make_folder, written_whole
from pyrtrav.geometry import Region
from pyrtrav.pyramid.vips import write_pyramid

FOLDS = 5

VALIDATION = 8
"""Every so many-th scene outside of the test fold is kept from training, for thresholds and the choice of weights."""

DECIDING = {
    "prohibitory": frozenset({*range(6), *range(7, 11), 15, 16}),
    "mandatory": frozenset(range(33, 41)),
    "danger": frozenset({11, *range(18, 32)}),
}
"""Classes of signs that decide a scene's label; others, such as "stop", do not."""


@dataclass(frozen=True)
class Sign:
    """A box of the table."""

    region: Region
    deciding: bool
    """Whether its class is one of those that make the scene's label."""


@dataclass(frozen=True)
class Scene:
    """One image."""

    name: str
    """``00001``"""
    label: str
    signs: tuple[Sign, ...]
    fold: int


def load_scenes(data: Path) -> list[Scene]:
    """Return the scenes of ``labels.csv`` with the signs of ``boxes.csv``, in the table's order."""
    signs: dict[str, list[Sign]] = defaultdict(list)
    deciding = frozenset().union(*DECIDING.values())
    for row in _rows(data / "boxes.csv"):
        left, top, right, bottom = (float(row[name]) for name in ("left", "top", "right", "bottom"))
        box = Region(left, top, right - left, bottom - top)
        signs[row["path"]].append(Sign(box, int(row["class_id"]) in deciding))
    labels = {row["path"]: row["label"] for row in _rows(data / "labels.csv")}
    folds: dict[str, int] = {}
    for label in sorted(set(labels.values())):
        names = sorted((path for path in labels if labels[path] == label), key=_hash)
        folds |= {path: place % FOLDS for place, path in enumerate(names)}
    return [Scene(Path(path).stem, label, tuple(signs[path]), folds[path]) for path, label in labels.items()]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _hash(name: str) -> str:
    return hashlib.sha256(f"scenes {name}".encode()).hexdigest()


def pyramid_of(work: Path, name: str) -> Path:
    return work / "pyramids" / f"{name}.tif"


def convert_all(data: Path, work: Path, on_scene: Callable[[], None]) -> int:
    """Convert what has not been converted yet; returns how many that were."""
    make_folder(work / "pyramids")
    done = 0
    for scene in load_scenes(data):
        target = pyramid_of(work, scene.name)
        if not target.exists():
            with written_whole(target) as beside:
                write_pyramid(os.fspath(data / "images" / f"{scene.name}.jpg"), os.fspath(beside))
            done += 1
        on_scene()
    return done


def write_manifest(work: Path, scenes: Iterable[Scene], fold: int) -> Path:
    """Write ``fold-k.csv``: the fold is the test split, an eighth of the others (by hash) validates."""
    others = sorted(
        (scene for scene in scenes if scene.fold != fold), key=lambda scene: (scene.label, _hash(scene.name))
    )
    split = {scene.name: "val" if place % VALIDATION == 0 else "train" for place, scene in enumerate(others)}
    rows = [
        (f"pyramids/{scene.name}.tif", scene.label, split.get(scene.name, "test"))
        for scene in sorted(scenes, key=lambda scene: scene.name)
    ]
    return _write(work / f"fold-{fold}.csv", ("path", "label", "split"), rows)


def write_hints(work: Path, scenes: Iterable[Scene], fold: int, share: float) -> Path:
    """Write the boxes of a share of the scenes outside of the test fold, by hash; all signs, whatever their class."""
    rows: list[tuple[object, ...]] = []
    for scene in scenes:
        if scene.fold != fold and int(_hash(f"hint {scene.name}")[:8], 16) < share * 2**32:
            for sign in scene.signs:
                box = sign.region
                rows.append((f"pyramids/{scene.name}.tif", box.x, box.y, box.right, box.bottom))
    return _write(work / f"hints-{fold}-{share:g}.csv", ("path", "left", "top", "right", "bottom"), rows)


def _write(path: Path, header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Path:
    with written_whole(path) as beside, beside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
    return path
