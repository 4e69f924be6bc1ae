"""The methods and the baselines on the same images: accuracy, looks, computing, bytes read and seconds.

    python -m benchmarks.side_by_side run --task samples digits --out runs/side_by_side
    python -m benchmarks.side_by_side report --out runs/side_by_side --scenes runs/scenes

Three tasks: ``samples``, the repository's tissue; ``digits``, one MNIST digit anywhere in an image eight times as wide;
and the street scenes, which ``benchmarks.scenes`` trains and whose results ``report`` takes over. In a task every arm
has the same encoder, augmentation and epochs, and is judged on the validation images, each looked at by itself with
nothing in the cache. What is done stays done; a training that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.mnist_images import DIGIT, TRAINING, data_folder, read_idx
from benchmarks.mnist_jobs import append_result, read_results
from benchmarks.mnist_megapixel import write_pyramid
from benchmarks.scenes import read_results as scenes_results
from benchmarks.side_by_side_report import draw_chart, markdown
from pyrtrav.files import make_folder, written_whole
from pyrtrav.predict import Predictor
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.selection import Settings
from pyrtrav.training.data import Dataset, load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer

SIDE, TILE = 224, 32
"""Of an image of ``digits`` and its tiles, in pixels."""
TRAIN, VALIDATION = 4000, 1000


@dataclass(frozen=True)
class Task:
    """Images with labels, and what all arms share."""

    manifest: Callable[[argparse.Namespace], Path]
    common: tuple[str, ...]
    arms: dict[str, tuple[str, tuple[str, ...], str]]
    """Name of an arm: method, options, epochs of a stage or of each."""


def samples(asked: argparse.Namespace) -> Path:
    """Return the repository's tissue."""
    return Path("sample_data/tissue")


def digits(asked: argparse.Namespace) -> Path:
    """Write the images where they are not there: black, with one digit of 28 px."""
    folder: Path = asked.out / "digits"
    if (folder / "manifest.csv").exists():
        return folder
    pixels = read_idx(asked.data / "mnist" / "train-images-idx3-ubyte.gz")
    labels = read_idx(asked.data / "mnist" / "train-labels-idx1-ubyte.gz")
    make_folder(folder)
    random = np.random.default_rng(0)
    chosen = [*range(TRAIN), *range(TRAINING, TRAINING + VALIDATION)]
    with written_whole(folder / "manifest.csv") as beside, beside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        for number in track(chosen, "writing"):
            canvas = np.zeros((SIDE, SIDE), np.uint8)
            y, x = (int(v) for v in random.integers(0, SIDE - DIGIT + 1, 2))
            canvas[y : y + DIGIT, x : x + DIGIT] = pixels[number]
            write_pyramid(folder / f"{number:05d}.tif", canvas, TILE)
            table.writerow((f"{number:05d}.tif", int(labels[number]), "train" if number < TRAINING else "val"))
    return folder


WAYS: dict[str, dict[str, str | None]] = {
    "topdown": {"learned": None},
    "mgnet": {"learned": None},
    "gfnet": {"learned": None, "random": "random", "centre": "centre"},
}
"""Where to look, for accuracy and cost at every depth: the stored selection, or places that nobody learned."""

TASKS = {
    "samples": Task(
        samples,
        (),
        {
            "topdown": ("topdown", ("multi_level=true",), "100"),
            "mgnet": ("mgnet", ("glimpses=6", "least_scale=0.1"), "100"),
            "gfnet": ("gfnet", ("looks=6", "halvings=2"), "[60,20,20]"),
            "fcn-64": ("fcn", ("halvings=0",), "100"),
            "fcn-128": ("fcn", ("halvings=1",), "100"),
            "fcn-256": ("fcn", ("halvings=2",), "100"),
            "mil": ("mil", ("depth=2",), "100"),
        },
    ),
    "digits": Task(
        digits,
        (
            "widths=[16,32,64,128]",
            "base_resolution=28",
            "turn=false",
            "batch_size=32",
        ),
        {
            "topdown": ("topdown", ("max_depth=3", "gradual=true", "multi_level=true", "c_t=[2,4,6]"), "[3,3,6]"),
            "mgnet": ("mgnet", ("glimpses=4", "least_scale=0.1"), "12"),
            "gfnet": ("gfnet", ("looks=4", "halvings=3"), "[6,3,3]"),
            "fcn-28": ("fcn", ("halvings=0",), "12"),
            "fcn-56": ("fcn", ("halvings=1",), "12"),
            "fcn-112": ("fcn", ("halvings=2",), "12"),
            "fcn-224": ("fcn", ("halvings=3",), "12"),
            "mil": ("mil", ("depth=3",), "12"),
        },
    ),
}


def run(asked: argparse.Namespace) -> None:
    """Train and judge what is not done."""
    torch.set_num_threads(asked.threads)
    make_folder(asked.out)
    results = asked.out / "results.jsonl"
    console = Console(stderr=True, highlight=False)
    done = {row["name"] for row in read_results(results)}
    for seed in asked.seeds:
        for name in asked.task:
            for arm in TASKS[name].arms:
                job = f"{name}-{arm}-seed{seed}"
                if job in done or (asked.only and not any(word in job for word in asked.only)):
                    continue
                console.print(job)
                row = measure(job, TASKS[name], arm, seed, asked)
                append_result(results, row)
                console.print(f"  accuracy {row['accuracy']:.3f}")


def measure(job: str, task: Task, arm: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Train one arm, and look at each validation image; returns means over those."""
    dataset = load_dataset(task.manifest(asked))
    method, options, epochs = task.arms[arm]
    settings = [*task.common, *options, f"epochs={asked.epochs or epochs}"]
    card, training = plan_training(dataset, method=method, assignments=settings)
    folder = asked.out / "models" / job
    if not (folder / "model.safetensors").exists():
        trainer = Trainer(dataset, card, training, folder, seed=seed)
        trainer.run(resume=(folder / "checkpoint.safetensors").exists())
    predictor = Predictor(folder / "model.safetensors")
    predictor.predict([dataset.split("val")[0].path])  # what is loaded once is not an image's
    means = judge(predictor, dataset, predictor.settings())
    curves = {way: curve(predictor, dataset, select) for way, select in WAYS.get(method, {}).items()}
    return {
        "name": job,
        "task": job.split("-")[0],
        "arm": arm,
        "seed": seed,
        "images": len(dataset.split("val")),
        **means,
        "curves": curves,
        "settings": settings,
        "training_seconds": predictor.card.training["seconds"],
        "command": shlex.join(["python", "-m", "benchmarks.side_by_side", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{predictor.device.type}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
    }


def judge(predictor: Predictor, dataset: Dataset, settings: Settings) -> dict[str, float]:
    """Look at each validation image with nothing in the cache; returns means."""
    rows = []
    for example in dataset.split("val"):
        shared_cache().clear()
        (outcome,) = predictor.predict([example.path], settings)
        if outcome.error is not None:
            raise outcome.error
        cost = outcome.record["cost"]
        rows.append(
            {
                "accuracy": float(outcome.record["prediction"]["label"] == dataset.classes[example.label]),
                **{name: cost[name] for name in ("fixations", "macs", "pixels_decoded", "bytes_read")},
                "seconds": cost["seconds"]["total"],
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def curve(predictor: Predictor, dataset: Dataset, select: str | None) -> list[dict[str, float]]:
    """Return what is right and what it costs when a run stops after each depth."""
    depths = range(predictor.card.max_depth + 1)
    return [judge(predictor, dataset, predictor.settings(depth=depth, select=select)) for depth in depths]


def report(asked: argparse.Namespace) -> None:
    """Write the table and the figure."""
    rows = read_results(asked.out / "results.jsonl")
    scenes = scenes_results(asked.scenes) if asked.scenes else []
    with written_whole(asked.markdown) as beside:
        beside.write_text(markdown(rows, scenes), encoding="utf-8")
    draw_chart(rows, scenes, asked.markdown.with_suffix(".png"))


def main() -> None:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, default=Path("runs/side_by_side"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="run|report")
    running = commands.add_parser("run", parents=[shared], help=run.__doc__)
    running.set_defaults(do=run)
    running.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    running.add_argument("--only", nargs="*", default=(), help="arms whose names, task-arm-seedN, hold a word")
    running.add_argument("--seeds", nargs="+", type=int, default=(0,))
    running.add_argument("--epochs", help="of a stage, instead of the arms'")
    running.add_argument("--data", type=Path, default=data_folder(), help="with mnist/ (default: PYRTRAV_DATA)")
    running.add_argument("--threads", type=int, default=1, help="of torch")
    telling = commands.add_parser("report", parents=[shared], help=report.__doc__)
    telling.set_defaults(do=report)
    telling.add_argument("--scenes", type=Path, help="the work folder of benchmarks.scenes")
    telling.add_argument("--markdown", type=Path, default=Path("docs/methods_compared.md"))
    asked = parser.parse_args()
    asked.do(asked)


if __name__ == "__main__":
    main()
