"""Learned filter sizes on CIFAR: "Convolutional Neural Networks without Pooling or Fixed Filter Sizes", tables 1 to 3.

    python -m benchmarks.learned_filters --filters 16 --layers 10 --epochs 30 --out runs/learned_filters

Trains the fixed structures (no-pooling, predefined, scale-invariant), the learned one, ``learned-depth`` if asked, and
any network of the multigrid paper by its name, such as ``--arms R-MG-sm-12``. What is learned is then pruned by
thresholds and to one resolution, tested, and fine-tuned. Training is the paper's: filters by the first four fifths of
the images, mixing weights by the last fifth, batch by batch in turn.

Every network is a job: what is done stays done, and a run that was interrupted goes on after the last whole epoch, to
the same weights. ``--minutes 9`` stops after an epoch. Results are appended to ``results.jsonl``, from which
``python -m benchmarks.filters_report`` makes tables and figure 3. The paper trains for 400 epochs, here the default.

Where the paper is silent: batches of 128, momentum 0.9, weight decay 5e-4, rates of 0.1 and, in fine-tuning, 0.02, the
usual augmentation, and fine-tuning for a tenth of the epochs, in which the mixing weights go on being trained by their
part. Fixed structures see the first part alone, as all filters do.

A mixing weight's logit goes about as far as steps times ``--mixing-lr``. The paper's 1e-4 is for some 125,000 steps; in
4,000 logits would move by 0.4 at most or so, which leaves no weight of four below 0.13: nothing to prune at 0.1.

On a CPU ``MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184`` in the environment makes training 1.5
times as fast: large buffers are then kept instead of being asked for again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from pathlib import Path

import torch

from benchmarks.cifar_images import load_cifar
from benchmarks.deadline import deadline
from benchmarks.filters_jobs import ARMS, ONE, Job, make_jobs
from benchmarks.filters_train import Run, Schedule, share_out
from benchmarks.mnist_images import data_folder
from benchmarks.results import append_result, made_here, read_results
from pyrtrav.encoders.multires.blocks import BLOCKS
from pyrtrav.errors import PyrtravError, nearest_name
from pyrtrav.files import make_folder


def main() -> None:
    parser = _parser()
    asked = parser.parse_args()
    for arm in asked.arms:
        if arm not in ARMS:
            parser.error(f"--arms: unknown arm {arm!r}{nearest_name(arm, ARMS)}")
    for pruning in asked.prune:
        if not _is_pruning(pruning):
            parser.error(f"--prune: {pruning!r} is neither a threshold within 0 and 1 nor {ONE!r}")
    if asked.layers < 3:
        parser.error("--layers: 3 or more; the image layer and the classifier are two of them")
    try:
        train(asked)
    except PyrtravError as error:
        sys.exit(str(error))


def train(asked: argparse.Namespace) -> None:
    """Train what is asked for and not done."""
    torch.set_num_threads(asked.threads)
    make_folder(asked.out)
    if asked.finetune_epochs is None:
        asked.finetune_epochs = max(asked.epochs // 10, 1)
    schedule = Schedule(**{field.name: getattr(asked, field.name) for field in fields(Schedule)})
    results = asked.out / "results.jsonl"
    rows = read_results(results)
    source = asked.data.name
    for row in rows:
        if row["schedule"] != asdict(schedule) or row["data"] != source:
            sys.exit(f"{results}: holds results of {row['data']} by {row['schedule']}; choose another --out")
    like = Job("learned", asked.filters, asked.layers, asked.block, asked.stride)
    jobs = list(make_jobs(asked.arms, asked.prune, asked.seeds, like))
    left = [job for job in jobs if job.name not in {row["name"] for row in rows}]
    print(f"{len(left)} of {len(jobs)} networks are left to train", flush=True)
    if not left:
        return
    data = share_out(*load_cifar(asked.data, asked.device, schedule.images))
    should_stop = deadline(asked.minutes)
    for job in left:
        found = Run(job, schedule, data, asked.out, asked.device).train(should_stop)
        if found is None:
            print(f"stopped in {job.name}; the same command goes on", flush=True)
            return
        append_result(results, found | {"data": source, "schedule": asdict(schedule)} | made_here(asked.device))
        print(f"{job.name}: {100 * found['accuracy']:.2f}%", flush=True)


def _is_pruning(text: str) -> bool:
    try:
        return text == ONE or 0 <= float(text) <= 1
    except ValueError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/learned_filters"))
    add("--data", type=Path, default=data_folder() / "cifar10", help="JPEG XL shards, or a binary archive of CIFAR")
    add("--arms", nargs="+", default=["no-pooling", "predefined", "scale-invariant", "learned"])
    add("--prune", nargs="*", default=["0", "0.1", "0.2", ONE], help="0 is a control: fine-tuned, and nothing pruned")
    add("--filters", type=int, default=64, help="of a layer; of the multigrid paper's networks their width in 64ths")
    add("--layers", type=int, default=10, help="the image layer and the classifier are two of them")
    add("--block", choices=sorted(BLOCKS), default="conv")
    add("--stride", type=int, default=1, help="of the image layer; the paper's is 1")
    add("--seeds", nargs="+", type=int, default=[0])
    for field in fields(Schedule):
        flag, default = f"--{field.name.replace('_', '-')}", 20_000 if field.name == "images" else field.default
        if isinstance(default, bool):
            add(flag, action="store_true")
        else:
            known = None if field.name == "finetune_epochs" else default
            add(flag, type=type(default), default=known)
    add("--minutes", type=float, help="stop after the first epoch that ends later")
    add("--threads", type=int, default=1)
    add("--device", default="cpu")
    return parser


if __name__ == "__main__":
    main()
