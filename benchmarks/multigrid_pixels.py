"""The segmentation and the spatial transformation of "Multigrid Neural Architectures" (sections 4.2, 4.3).

    python -m benchmarks.multigrid_pixels --networks U-NET-11 PMG-11 --iterations 1500 --batch 8 --short

Trains networks with an output for every pixel on scenes of MNIST digits, and tests them. What is done stays done: a
result is a line of ``results.jsonl``, and a run that was interrupted goes on from its last checkpoint, to the same
weights on a CPU. ``--minutes 50`` stops at a checkpoint. ``python -m benchmarks.multigrid_report`` makes the tables
and the picture from the results.

The paper's schedule, 30,000 iterations of 64 scenes for the segmentation and 160,000 for the others, is one for a GPU
(``--device cuda``); fewer iterations run through the same learning rates. On a CPU one thread is used, and
MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 in the environment saves a third of the time.
An iteration of 8 scenes in bfloat16 (``--batch 8 --bfloat16``) takes a core 0.13 (SG-11) to 0.5 seconds (R-PMG-20).
The paper's descent hardly learns in a thousand of them that most pixels have no label; for short runs there is
``--short``: Adam, and outputs that begin at the labels' share.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.deadline import deadline
from benchmarks.mnist_images import data_folder
from benchmarks.pixel_scenes import TASKS, Scenes, draw_scenes, load_digit_sets
from benchmarks.pixel_train import Job, Run, Schedule
from benchmarks.results import append_result, made_here, read_results
from pyrtrav.encoders.multigrid import PIXEL_NETWORKS
from pyrtrav.errors import PyrtravError
from pyrtrav.files import make_folder


def main() -> None:
    asked = _arguments()
    try:
        train(asked)
    except PyrtravError as error:
        sys.exit(str(error))


def train(asked: argparse.Namespace) -> None:
    """Train what is asked for and not done."""
    torch.set_num_threads(asked.threads)
    folder = make_folder(asked.out)
    should_stop = deadline(asked.minutes)
    for task in asked.task:
        schedule = _schedule(task, asked)
        jobs = [Job(task, network, seed) for seed in asked.seeds for network in asked.networks]
        left = _left(folder / "results.jsonl", jobs, schedule)
        print(f"{task}: {len(left)} of {len(jobs)} networks are left to train", flush=True)
        if not left:
            continue
        scenes = task_scenes(task, schedule.train_scenes, schedule.test_scenes, asked.data, asked.device)
        for job in left:
            result = Run(job, schedule, scenes, folder).train(asked.every, should_stop)
            if result is None:
                return
            line = result | {"schedule": asdict(schedule)} | made_here(asked.device)
            append_result(folder / "results.jsonl", line)
            print(f"{job.name}  IoU {result['iou']:.4f}  error {result['error']:.4f}", flush=True)


def task_scenes(task: str, train: int, test: int, data: Path, device: str) -> tuple[Scenes, Scenes]:
    """Return the scenes of a task for training and for the test: of seeds 0 and 1, and of MNIST's two sets."""
    digits, others = load_digit_sets(data, device)
    return draw_scenes(TASKS[task], digits, train, 0), draw_scenes(TASKS[task], others, test, 1)


def _schedule(task: str, asked: argparse.Namespace) -> Schedule:
    found = TASKS[task]
    iterations = asked.iterations or 200 * found.iterations_per_epoch
    scenes = asked.train_scenes or found.train, asked.test_scenes or found.test
    return Schedule(iterations, *scenes, asked.batch, bfloat16=asked.bfloat16, short=asked.short)


def _left(results: Path, jobs: list[Job], schedule: Schedule) -> list[Job]:
    """The jobs of a task that have no result yet."""
    rows = [row for row in read_results(results) if row["task"] == jobs[0].task]
    for row in rows:
        if row["schedule"] != asdict(schedule):
            sys.exit(f"{results}: holds {row['name']} of another schedule, {row['schedule']}; choose another --out")
    done = {row["name"] for row in rows}
    return [job for job in jobs if job.name not in done]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=["segmentation", "transformation"])
    parser.add_argument("--networks", nargs="+", choices=PIXEL_NETWORKS, default=list(PIXEL_NETWORKS))
    parser.add_argument("--iterations", type=int, help="(default: the paper's)")
    parser.add_argument("--batch", type=int, default=64, help="scenes of an iteration")
    parser.add_argument("--bfloat16", action="store_true", help="train in it, twice as fast where a CPU has it")
    parser.add_argument("--short", action="store_true", help="train by Adam: for runs far shorter than the paper's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--train-scenes", type=int, help="(default: the paper's)")
    parser.add_argument("--test-scenes", type=int, help="(default: the paper's)")
    parser.add_argument("--out", type=Path, default=Path("runs/multigrid_pixels"))
    parser.add_argument("--data", type=Path, default=data_folder(), help="with mnist/ (default: PYRTRAV_DATA)")
    parser.add_argument("--every", type=int, default=50, help="iterations from checkpoint to checkpoint")
    parser.add_argument("--minutes", type=float, help="stop at the next checkpoint after so long")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    if not (asked.data / "mnist").is_dir():
        parser.error(f"--data: {asked.data} holds no folder mnist with the IDX files")
    numbers = (asked.batch, asked.every, asked.threads, asked.iterations, asked.train_scenes, asked.test_scenes)
    if any(number is not None and number < 1 for number in numbers):
        parser.error("--batch, --every, --threads, --iterations and --*-scenes are 1 or more")
    return asked


if __name__ == "__main__":
    main()
