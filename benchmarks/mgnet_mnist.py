"""The toy experiments of "Multi-Glimpse Network" (appendix B, table 4), and its robustness claims at their scale.

    python -m benchmarks.mgnet_mnist --out runs/mgnet_mnist --epochs 5

Trains a multi-glimpse network and the feed-forward net, with the same backbone and schedule, on translated MNIST and on
that with Gaussian noise (112 px; 28 px a glimpse), and judges each: after every glimpse as it is, under the 15 common
corruptions, and under PGD. What is done stays done, and a run that was interrupted goes on at its last epoch, to the
same weights. ``--only translated-ff gaussian`` takes the models whose names hold a word, ``--minutes 9`` stops at a
checkpoint. Results are appended to ``results.jsonl``; ``python -m benchmarks.mgnet_report`` writes the tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.deadline import deadline
from benchmarks.mgnet_robust import draw_test, right, under_attack, under_corruptions
from benchmarks.mgnet_train import DATASETS, Job, Run, Schedule
from benchmarks.mnist_images import data_folder, load_digits
from benchmarks.results import append_result, made_here, read_results
from pyrtrav.files import make_folder

MODELS = ("mgnet", "ff")


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    make_folder(asked.out)
    schedule, results = Schedule(asked.epochs, asked.train_images, bfloat16=asked.bfloat16), asked.out / "results.jsonl"
    if any(row["schedule"] != vars(schedule) for row in read_results(results)):
        sys.exit(f"{results}: holds results of another schedule; choose another --out")
    done = {row["name"] for row in read_results(results)}
    jobs = [Job(dataset, model, seed) for seed in asked.seeds for dataset in DATASETS for model in MODELS]
    should_stop = deadline(asked.minutes)
    data = load_digits(asked.data, asked.device)
    for job in jobs:
        if job.name in done or (asked.only and not any(word in job.name for word in asked.only)):
            continue
        run = Run(job, schedule, data, asked.out, asked.device)
        found = run.train(should_stop)
        if found is None:
            return
        row = found | _robustness(run, asked) | {"schedule": vars(schedule)} | made_here(asked.device)
        append_result(results, row)
        print(f"{job.name}  accuracy after each glimpse {row['accuracies']}", flush=True)


def _robustness(run: Run, asked: argparse.Namespace) -> dict[str, Any]:
    """Under corruptions and attacks, on the first validation digits."""
    dataset, digits = run.job.dataset, run.validation_digits
    some = draw_test(digits, dataset, asked.corrupted)
    few = draw_test(digits, dataset, asked.attacked)
    return {
        "corrupted_images": asked.corrupted,
        "clean": right(run.model, *some),
        "corruptions": under_corruptions(run.model, *some),
        "attacked_images": asked.attacked,
        "attacked": under_attack(run.model, *few, asked.eps, asked.steps),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mgnet_mnist"))
    parser.add_argument(
        "--data", type=Path, default=data_folder(), help="with mnist/ and textures/ (default: PYRTRAV_DATA)"
    )
    parser.add_argument("--epochs", type=int, default=400, help="the paper's; of its other experiments")
    parser.add_argument("--train-images", type=int, default=55_000, help="first images of the training set")
    parser.add_argument("--bfloat16", action="store_true", help="train in it, twice as fast where a CPU has it")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--only", nargs="*", default=(), help="models whose names hold one of these words")
    parser.add_argument("--corrupted", type=int, default=200, help="images under each corruption and severity")
    parser.add_argument("--attacked", type=int, default=200, help="images under attack")
    parser.add_argument("--eps", nargs="+", type=float, default=(4.0, 16.0), help="greatest change, in 255ths")
    parser.add_argument("--steps", nargs="+", type=int, default=(4, 20), help="of the attack, a quarter of eps each")
    parser.add_argument("--minutes", type=float, help="stop at the next checkpoint after so long")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    if not (asked.data / "mnist").is_dir():
        parser.error(f"--data: {asked.data} holds no folder mnist with the IDX files")
    return asked


if __name__ == "__main__":
    main()
