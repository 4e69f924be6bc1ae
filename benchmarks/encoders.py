"""Encoders in `topdown`, compared at about equal parameters, and what a cell's surroundings add to a multigrid one.

    python -m benchmarks.encoders --data samples --out runs/encoders
    python -m benchmarks.encoders --data mnist --arm multigrid-tree --arm multigrid-parent --epochs 4 --images 5000
    python -m benchmarks.encoders --data scenes --folds 0        # after `python -m benchmarks.scenes prepare`
    python -m benchmarks.encoders --report docs/encoders_compared.md

``samples``: the repository's training samples, 1,024 px, as `pyrtrav train` trains on them. ``mnist``: digits of 28 px
somewhere on 128 px, drawn anew at every load, held in memory. ``scenes``: the street scenes with hints, as
`benchmarks.scenes` trains on them, in patches of 64 px, which the paper's encoders do not have. Elsewhere patches have
32 px, and traversals go two depths below the glance, three on the samples.

A job is a data set, an arm, a seed and a length (and a fold). It goes on from its checkpoint; what is done is a line of
``results.jsonl`` and is not done again.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.encoders_arms import ARMS
from benchmarks.encoders_report import markdown
from benchmarks.encoders_tasks import RATES, TASKS, Job
from benchmarks.mnist_images import data_folder
from benchmarks.results import append_result, made_here, read_results
from pyrtrav.errors import PyrtravError
from pyrtrav.files import make_folder, written_whole

EPOCHS = {"samples": 150, "mnist": 16, "scenes": 8}


def plan(asked: argparse.Namespace) -> list[Job]:
    """Return the jobs of a request, seed by seed, so that a run cut short has compared something."""
    jobs = []
    for seed in asked.seeds:
        for data in asked.data:
            for fold in asked.folds if data == "scenes" else [0]:
                for arm in asked.arm:
                    if data == "scenes" and ARMS[arm].large is None:
                        continue
                    images = asked.images if data == "mnist" else 0
                    lesson = asked.lesson if data == "scenes" else 0
                    epochs, rate = asked.epochs or EPOCHS[data], asked.lr or RATES[data]
                    jobs.append(Job(data, arm, seed, epochs, rate, images, fold, lesson, asked.bfloat16))
    return jobs


def do(job: Job, asked: argparse.Namespace) -> dict[str, object]:
    """Train where that has not been done, and evaluate; returns a line for the results."""
    folder = asked.out / job.name
    make_folder(folder)
    begun = time.perf_counter()
    found = TASKS[job.data](job, folder, asked)
    return {
        "name": job.name,
        **vars(job),
        **found,
        "run_seconds": round(time.perf_counter() - begun, 1),
        **made_here(asked.device),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", choices=TASKS, help="may be given again; default: samples, mnist")
    parser.add_argument("--arm", action="append", choices=ARMS, help="may be given again; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="S")
    parser.add_argument("--epochs", type=int, help="default: 150 on samples, 16 on mnist, 8 after a lesson on scenes")
    parser.add_argument("--lr", type=float, help="default: 5e-4 on samples, 2e-3 on mnist, 1e-3 on scenes")
    parser.add_argument("--images", type=int, default=5000, help="digits of an epoch on mnist, drawn of 55,000")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], choices=range(5), metavar="K", help="of scenes")
    parser.add_argument("--source", type=Path, default=data_folder(), help="the data; default: PYRTRAV_DATA")
    parser.add_argument("--scenes", type=Path, default=Path("runs/scenes"), help="where the scenes were converted to")
    parser.add_argument("--out", type=Path, default=Path("runs/encoders"))
    parser.add_argument("--lesson", type=int, default=130, help="epochs of the lesson on scenes")
    parser.add_argument(
        "--bfloat16", action="store_true", help="train encoders in it, which are then judged in float32"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--device", default="cpu", help="on which mnist and samples are trained")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write the table of what was measured, and do nothing else"
    )
    asked = parser.parse_args()
    asked.data, asked.arm = asked.data or ["samples", "mnist"], asked.arm or list(ARMS)
    return asked


def main() -> None:
    asked = parse()
    try:
        run(asked)
    except PyrtravError as error:
        sys.exit(str(error))


def run(asked: argparse.Namespace) -> None:
    """Do the jobs that are not done, or write the report."""
    results = asked.out / "results.jsonl"
    if asked.report is not None:
        text = markdown(read_results(results))
        with written_whole(asked.report) as beside:
            beside.write_text(text, encoding="utf-8")
        print(text)
        return
    torch.set_num_threads(asked.threads)
    make_folder(asked.out)
    done = {record["name"] for record in read_results(results)}
    for job in plan(asked):
        if job.name in done:
            continue
        print(job.name, flush=True)
        record = do(job, asked)
        append_result(results, record)
        print(
            f"  accuracy {record['accuracy']:.3f}, {record['cells']:.1f} cells, {record['run_seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
