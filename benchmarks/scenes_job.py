"""One run on the scenes: train on four folds, look at every scene of the fifth, and say what was found and spent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import made_here
from benchmarks.scenes_arms import ARMS, COMMON, DEEPEST, WITH_HINTS
from benchmarks.scenes_data import Scene, load_scenes, pyramid_of, write_hints, write_manifest
from pyrtrav.geometry import Region
from pyrtrav.methods import METHODS
from pyrtrav.methods.topdown.guidance import asked_for
from pyrtrav.predict import Outcome, Predictor
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.training.data import load_dataset
from pyrtrav.training.hints import Hints, load_hints
from pyrtrav.training.log import EpochReport
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a line of the results is about."""

    track: str
    arm: str
    fold: int
    seed: int
    hint_share: float
    settings: tuple[str, ...]
    """Assignments as of ``--set``, in order."""

    @property
    def key(self) -> str:
        """The same for the same job, whatever else was asked for."""
        text = json.dumps([self.track, self.arm, self.fold, self.seed, self.hint_share, list(self.settings)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        return f"{self.track}-{self.arm}-fold{self.fold}-seed{self.seed}-{self.key}"


def plan_jobs(
    tracks: Sequence[str],
    arms: Sequence[str],
    folds: Sequence[int],
    seeds: Sequence[int],
    *,
    epochs: str | None,
    hint_share: float,
    assignments: Sequence[str],
) -> list[Job]:
    """Return the jobs of a request, fold by fold, so that a run cut short has compared something."""
    jobs = []
    for seed in seeds:
        for fold in folds:
            for track in tracks:
                for name in arms:
                    arm = ARMS[name]
                    if track not in arm.tracks or arm.method not in METHODS:
                        continue
                    hinted = track == "hints"
                    aids, own = (WITH_HINTS, arm.hint_epochs) if hinted else ((), arm.epochs)
                    settings = (*COMMON, *arm.options, *aids, f"epochs={epochs or own}", *assignments)
                    jobs.append(Job(track, name, fold, seed, hint_share if track == "hints" else 0.0, settings))
    return jobs


def run_job(job: Job, data: Path, work: Path, on_epoch: Callable[[EpochReport], None]) -> Record:
    """Train where that has not been done, and look at the test fold; returns a line for the results."""
    scenes = load_scenes(data)
    dataset = load_dataset(write_manifest(work, scenes, job.fold))
    arm, folder = ARMS[job.arm], work / "runs" / job.name
    hints = Hints()
    if job.track == "hints":
        hints = load_hints(write_hints(work, scenes, job.fold, job.hint_share), dataset)
    card, training = plan_training(dataset, method=arm.method, assignments=job.settings)
    model = folder / "model.safetensors"
    if not model.exists():
        trainer = Trainer(dataset, card, training, folder, seed=job.seed, on_epoch=on_epoch, hints=hints)
        trainer.run(resume=(folder / "checkpoint.safetensors").exists())
    predictor = Predictor(model)
    rows = [_look(predictor, scene, work) for scene in scenes if scene.fold == job.fold]
    return {
        "name": job.key,
        "track": job.track,
        "arm": job.arm,
        "fold": job.fold,
        "seed": job.seed,
        "hint_share": job.hint_share,
        "hinted_images": sum(example.path in hints.boxes for example in dataset.split("train")),
        "settings": list(job.settings),
        "selection": dict(predictor.card.selection),
        "training": predictor.card.training,
        "rows": rows,
        "model": str(model),
        "data": str(data),
        **made_here(predictor.device.type),
    }


def _look(predictor: Predictor, scene: Scene, work: Path) -> Record:
    """Look at one scene with nothing in the cache, so that what is decoded is what it needs."""
    shared_cache().clear()
    (outcome,) = predictor.predict([pyramid_of(work, scene.name)])
    if outcome.error is not None:
        raise outcome.error
    cost = outcome.record["cost"]
    return {
        "scene": scene.name,
        "label": scene.label,
        "predicted": outcome.record["prediction"]["label"],
        "by_depth": [level["label"] for level in outcome.record["levels"]],
        **{name: cost[name] for name in ("pixels_decoded", "pixels_encoded", "macs", "fixations")},
        "seconds": cost["seconds"]["total"],
        **seen_signs(outcome, scene),
    }


def seen_signs(outcome: Outcome, scene: Scene) -> Record:
    """Cells at each depth, and for every sign whether a cell of the deepest level shows it.

    It does where it holds the sign's centre or half of what it could hold of it, as hints ask.
    """
    assert outcome.tree is not None
    if outcome.record["model"]["method"] != "topdown":
        return {}
    nodes = outcome.tree.nodes
    depths = np.bincount([node.depth for node in nodes], minlength=DEEPEST + 1)
    regions = [node.region for node in nodes if node.depth == DEEPEST]
    return {
        "cells": [int(n) for n in depths[1:]],
        "signs": [[sign.deciding, bool(regions) and shows(regions, sign.region)] for sign in scene.signs],
    }


def shows(regions: Sequence[Region], sign: Region) -> bool:
    """Whether one of the regions shows a sign."""
    cells = np.array([region.as_tuple() for region in regions], np.float64)
    return bool(asked_for(cells, np.zeros(len(cells), np.int64), [[sign]]).any())
