"""The MNIST experiments of "Image classification through top-down image pyramid traversal" (section 5.1, figure 4).

    python -m benchmarks.topdown_mnist --out runs/topdown_mnist --epochs 3 --draws 5

Trains the three pairs of models on the three variants at the three resolutions, M_i with the paper's c_t, from scratch
and gradual, and evaluates each as the paper does. Every model is a job: what is done stays done, and a run that was
interrupted goes on where it was, to the same weights. ``--only plain-M3 noisy`` takes the jobs whose names hold a
word, ``--minutes 9`` stops at a checkpoint, ``--workers`` trains several at a time, each on one thread. Results are
appended to ``results.jsonl``; ``python -m benchmarks.mnist_report`` draws figure 4 and the table of claims from it.

The paper trains for 70 epochs, here the default; two cores would need some 45 hours for that, by estimate.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from multiprocessing.synchronize import Lock
from pathlib import Path
from typing import Any

from benchmarks.mnist_images import VARIANTS, data_folder
from benchmarks.mnist_jobs import beyond_jobs, paper_jobs, parent_of, select
from benchmarks.mnist_train import Job, Schedule
from benchmarks.results import append_result, made_here, read_results
from pyrtrav.files import make_folder

Queue = Any


def main() -> None:
    asked = _arguments()
    make_folder(asked.out)
    schedule = Schedule(asked.epochs, asked.train_images, draws=asked.draws)
    jobs = list(paper_jobs(asked.variants, asked.pairs, asked.seeds))
    if asked.beyond:
        jobs += beyond_jobs(asked.variants, asked.seeds)
    results = asked.out / "results.jsonl"
    _check_schedule(results, schedule)
    done = {row["name"] for row in read_results(results)}
    left = [job for job in select(jobs, asked.only) if job.name not in done]
    print(f"{len(left)} of {len(jobs)} models are left to train", flush=True)
    deadline = time.time() + 60 * asked.minutes if asked.minutes is not None else None
    context = multiprocessing.get_context("spawn")
    lock = context.Lock()
    lines = _lines(left)
    workers = [
        context.Process(target=work, args=(lines[i :: asked.workers], schedule, asked, deadline, lock))
        for i in range(asked.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit(1)


def _lines(jobs: list[Job]) -> list[list[Job]]:
    """Jobs that start from one another stay together, in order."""
    lines: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        lines.setdefault((job.seed, job.variant, job.pair, job.model, job.options), []).append(job)
    return list(lines.values())


def work(
    lines: list[list[Job]], schedule: Schedule, asked: argparse.Namespace, deadline: float | None, lock: Lock
) -> None:
    """Train the jobs of some lines, one after the other."""
    import torch

    from benchmarks.mnist_images import load_digits
    from benchmarks.mnist_train import Run

    torch.set_num_threads(1)
    data = load_digits(asked.data, asked.device)
    parent_process = os.getppid()

    def should_stop() -> bool:
        orphaned = os.getppid() != parent_process
        return orphaned or (deadline is not None and time.time() > deadline)

    for line in lines:
        for job in line:
            parent = parent_of(job)
            start = None if parent is None else asked.out / f"{parent.name}.safetensors"
            run = Run(job, schedule, data, asked.out, asked.device)
            result = run.train(start, should_stop)
            if result is None:
                return
            with lock:
                append_result(
                    asked.out / "results.jsonl", result | {"schedule": vars(schedule)} | made_here(asked.device)
                )


def _check_schedule(results: Path, schedule: Schedule) -> None:
    rows = read_results(results)
    if any(row["schedule"] != vars(schedule) for row in rows):
        sys.exit(f"{results}: holds results of another schedule, {rows[0]['schedule']}; choose another --out")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/topdown_mnist"))
    parser.add_argument(
        "--data", type=Path, default=data_folder(), help="with mnist/ and textures/ (default: PYRTRAV_DATA)"
    )
    parser.add_argument("--epochs", type=int, default=70)
    parser.add_argument("--train-images", type=int, default=55_000, help="first images of the training set")
    parser.add_argument("--draws", type=int, default=20, help="evaluations of each model, averaged")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--pairs", nargs="+", type=int, choices=(1, 2, 3), default=(3, 2, 1))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,))
    parser.add_argument("--beyond", action="store_true", help="also what the paper has not: shared cells, 5 x 5, ...")
    parser.add_argument(
        "--only", nargs="*", default=(), help="jobs whose names hold one of these words, and what they start from"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="stop at the next checkpoint after so long")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    if not (asked.data / "mnist").is_dir():
        parser.error(f"--data: {asked.data} holds no folder mnist with the IDX files")
    return asked


if __name__ == "__main__":
    main()
