"""The methods and the baselines on the same images: accuracy, looks, computing, bytes read and seconds.

    python -m benchmarks.side_by_side run --task samples digits --out runs/side_by_side
    PYRTRAV_CACHE_BYTES=3221225472 python -m benchmarks.side_by_side run --task scenes
    python -m benchmarks.side_by_side report --out runs/side_by_side

Three tasks: ``samples``, the repository's tissue; ``digits``, one MNIST digit anywhere on 128 px;
and ``scenes``, the street scenes of `benchmarks.scenes` with its settings, of which one fold is judged. In a task every
arm has the same encoder and augmentation; each image is looked at by itself with nothing in the cache. What is done
stays done; a training that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.mnist_images import data_folder
from benchmarks.results import append_result, made_here, read_results
from benchmarks.side_by_side_judge import curves, judge
from benchmarks.side_by_side_report import draw_chart, markdown
from benchmarks.side_by_side_tasks import TASKS, scene_hints
from pyrtrav.files import make_folder, written_whole
from pyrtrav.predict import Predictor
from pyrtrav.training.data import load_dataset
from pyrtrav.training.hints import Hints
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer


def run(asked: argparse.Namespace) -> None:
    """Train and judge what is not done."""
    torch.set_num_threads(asked.threads)
    make_folder(asked.out)
    results = asked.out / "results.jsonl"
    console = Console(stderr=True, highlight=False)
    done = {row["name"] for row in read_results(results)}
    for seed in asked.seeds:
        for task in asked.task:
            for arm in TASKS[task].arms:
                job = f"{task}-{arm.replace(' ', '-')}-seed{seed}"
                if job in done or (asked.only and not any(word in job for word in asked.only)):
                    continue
                console.print(job)
                row = measure(job, task, arm, seed, asked)
                append_result(results, row)
                console.print(f"  accuracy {row['accuracy']:.3f}")


def measure(job: str, name: str, arm: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Train one arm where that was not done, and look at the images that it has not seen; returns means over those."""
    task, own, work = TASKS[name], TASKS[name].arms[arm], asked.out / name
    dataset = load_dataset(task.prepare(asked.data, work))
    settings = [*task.common, *own.options, f"epochs={asked.epochs or own.epochs}"]
    card, training = plan_training(dataset, method=own.method, assignments=settings)
    folder = asked.out / "models" / job
    if not (folder / "model.safetensors").exists():
        hints = scene_hints(asked.data, work, dataset) if own.hints else Hints()
        trainer = Trainer(dataset, card, training, folder, seed=seed, hints=hints)
        trainer.run(resume=(folder / "checkpoint.safetensors").exists())
    predictor = Predictor(folder / "model.safetensors")
    examples = dataset.split(task.split)
    predictor.predict([examples[0].path])  # what is loaded once is not an image's
    return {
        "name": job,
        "task": name,
        "arm": arm,
        "seed": seed,
        "images": len(examples),
        **judge(predictor, dataset, examples),
        "curves": curves(predictor, examples),
        "settings": settings,
        "training_seconds": predictor.card.training["seconds"],
        **made_here(predictor.device.type),
    }


def report(asked: argparse.Namespace) -> None:
    """Write the table and the figure."""
    rows = read_results(asked.out / "results.jsonl")
    with written_whole(asked.markdown) as beside:
        beside.write_text(markdown(rows), encoding="utf-8")
    draw_chart(rows, asked.markdown.with_suffix(".png"))


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
    running.add_argument("--data", type=Path, default=data_folder(), help="mnist/, scenes/ (default: PYRTRAV_DATA)")
    running.add_argument("--threads", type=int, default=1, help="of torch")
    telling = commands.add_parser("report", parents=[shared], help=report.__doc__)
    telling.set_defaults(do=report)
    telling.add_argument("--markdown", type=Path, default=Path("docs/methods_compared.md"))
    asked = parser.parse_args()
    asked.do(asked)


if __name__ == "__main__":
    main()
