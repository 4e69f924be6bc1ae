"""The benchmark on street scenes: its folds leak nothing, chance is chance, and its tables say what the lines hold."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.scenes_arms import ARMS
from benchmarks.scenes_chance import SCENE, chance_of, random_trees
from benchmarks.scenes_data import load_scenes, write_hints, write_manifest
from benchmarks.scenes_job import plan_jobs, shows
from benchmarks.scenes_report import markdown
from pyrtrav.geometry import Grid, Region
from pyrtrav.methods.topdown import Location
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Floats, Ints, Settings
from pyrtrav.trace import Trace
from pyrtrav.traversal import Traversal
from tests.small import SmallEncoder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tables of 80 scenes."""
    random = np.random.default_rng(0)
    labels, boxes = [["path", "label"]], [["path", "left", "top", "right", "bottom", "class_id"]]
    for number in range(80):
        label, kind = [("none", 13), ("danger", 18), ("mandatory", 38), ("prohibitory", 2)][number % 4]
        labels.append([f"images/{number:05}.jpg", label])
        for _ in range(number % 3 if label == "none" else 1):
            x, y = random.integers(0, 1200), random.integers(0, 700)
            boxes.append([f"images/{number:05}.jpg", *map(str, (x, y, x + 30, y + 40)), str(kind)])
    for name, rows in (("labels.csv", labels), ("boxes.csv", boxes)):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return tmp_path


def test_folds_hold_every_scene_once_and_no_hint_is_of_a_test_scene(data: Path) -> None:
    scenes = load_scenes(data)
    tested: list[str] = []
    for fold in range(5):
        with write_manifest(data, scenes, fold).open(newline="") as file:
            rows = list(csv.DictReader(file))
        split = {row["path"]: row["split"] for row in rows}
        test = [path for path, name in split.items() if name == "test"]
        labels = [row["label"] for row in rows if row["split"] == "test"]
        assert {labels.count(label) for label in labels} == {4}
        assert list(split.values()).count("val") == 8
        with write_hints(data, scenes, fold, 1.0).open(newline="") as file:
            hinted = {row["path"] for row in csv.DictReader(file)}
        assert not hinted & set(test)
        assert len(hinted) == sum(1 for scene in scenes if scene.signs and scene.fold != fold)
        with write_hints(data, scenes, fold, 0.3).open(newline="") as file:
            some = {row["path"] for row in csv.DictReader(file)}
        assert some < hinted
        tested += test
    assert len(tested) == len(set(tested)) == 80


def test_jobs_are_known_by_their_settings() -> None:
    asked = {"epochs": None, "hint_share": 1.0, "assignments": []}
    jobs = plan_jobs(["labels", "hints"], list(ARMS), range(5), [0, 1], **asked)
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.arm for job in jobs if job.track == "hints"} == {"topdown"}
    again = plan_jobs(["labels"], ["fcn-64"], [3], [1], **asked)
    assert {job.key for job in again} < {job.key for job in jobs}
    other = plan_jobs(["labels"], ["fcn-64"], [3], [1], **{**asked, "assignments": ["lr=0.1"]})
    assert other[0].key not in {job.key for job in jobs}


def test_random_trees_are_those_of_a_random_traversal() -> None:
    """How often each place is reached, as counted from the traversal itself with one probability a depth."""
    runs, first, second = 1500, 0.35, 0.25
    random = np.random.default_rng(0)
    image = ArrayPyramid(np.zeros((10, 17), np.uint8), channels=1)
    traversal = Traversal(SmallEncoder(), Location(5, (2, 2), Grid(), 0.5))

    def draws(trace: Trace, parents: Ints, cell: Ints) -> Floats:
        p = np.where(trace.depth[parents] == 0, first, second)
        return np.where(random.random(len(parents)) < p, -1.0, 2.0)

    with torch.inference_mode():
        trace = traversal([image] * runs, Settings("sample", depth=2), draws)
    cells = [float((trace.depth == depth).sum() / runs) for depth in (1, 2)]
    trees = random_trees(cells)
    assert trees.sum((1, 2)).mean() == pytest.approx(cells[1], abs=0.01)
    deepest = trace.depth == 2
    counted = np.zeros((7, 7))
    np.add.at(counted, (trace.row[deepest], trace.column[deepest]), 1 / runs)
    assert counted.max() > 0.15
    assert np.abs(counted - trees.mean(0)).max() < 0.045


def test_all_cells_show_every_sign_and_none_shows_none() -> None:
    signs = [Region(700, 300, 40, 40), Region(0, 0, 128, 128), Region(1300, 700, 20, 20)]
    everything = np.ones((2, 31, 31), np.bool_)
    assert chance_of(signs, everything) == [1.0, 1.0, 1.0]
    assert chance_of(signs, ~everything) == [0.0, 0.0, 0.0]
    everything[0] = False
    assert chance_of(signs, everything) == [0.5, 0.5, 0.5]
    assert SCENE.intersects(signs[1])
    assert shows([Region(690, 290, 85, 85)], signs[0])
    assert not shows([Region(600, 290, 85, 85)], signs[0])


def test_the_tables_hold_what_was_found(data: Path) -> None:
    scenes = [scene for scene in load_scenes(data) if scene.fold == 0]
    rows = [
        {
            "scene": scene.name,
            "label": scene.label,
            "predicted": scene.label if scene.label != "danger" else "none",
            "by_depth": ["none", "none", "none", "none", scene.label],
            **{"pixels_decoded": 2_000_000, "pixels_encoded": 80_000, "macs": 3_000_000, "fixations": 9},
            "seconds": 0.5,
            "cells": [2, 2, 2, 2],
            "signs": [[sign.deciding, sign.deciding] for sign in scene.signs],
        }
        for scene in scenes
    ]
    record = {"name": "x", "track": "hints", "arm": "topdown", "fold": 0, "seed": 0, "hint_share": 1.0, "rows": rows}
    record |= {"settings": ["a=1"], "training": {"seconds": 120}, "hinted_images": 5, "machine": "m", "date": "2026"}
    text = markdown([record], scenes)
    assert "| topdown | 1 | 16 | 0.750 | - | 0.750 | 2.00 | 0.080 | 3 | 0.500 | 2.0 |" in text
    assert "| topdown | 0.000 | 1.000 | 1.000 | 1.000 |" in text
    assert "| topdown (hints) | 0.250 | 0.250 | 0.250 | 0.250 | 1.000 |" in text
    assert "| topdown (hints) | 2.0, 2.0, 2.0, 2.0 | 1.000 |" in text
    assert markdown([], scenes).startswith("No results")
