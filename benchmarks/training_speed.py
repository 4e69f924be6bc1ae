"""How fast does a top-down model train, beside a plain implementation of the same rule?

    python -m benchmarks.training_speed --out runs/training_speed

M3 on plain MNIST at 28 and 56 px, batches of 128, two draws an image. The policy is first brought to its c_t, as it is
for most of a training: by so many steps, or by the weights that ``benchmarks.topdown_mnist`` has left in a folder. Then
steps of ours and of ``benchmarks/plain_topdown.py`` take turns, with the same weights, images and number of attended
cells; one thread. Prints images a second (medians), the ratio (median over turns), the share of the places that two
draws look at which are distinct, and what a step of ours is made of; writes them as JSON too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.mnist_images import Digits, data_folder, load_digits
from benchmarks.mnist_train import Job, Run, Schedule
from benchmarks.plain_topdown import plain_step
from pyrtrav.files import make_folder, written_whole
from pyrtrav.sampling import ImageStack
from pyrtrav.trace import Trace

BATCH = 128
DRAWS = 2


def measure(
    resolution: int,
    c_t: float,
    digits: tuple[Digits, Digits],
    steps: int,
    trained: Path | None,
    turns: int,
    device: str,
) -> dict[str, Any]:
    """Train a little, then take turns."""
    job = Job("plain", 3, "M", resolution, c_t)
    run = Run(job, Schedule(1, train_images=BATCH * steps), digits, Path(), device)
    if trained is None:
        run._epoch(0)
    else:
        run.model.load_state_dict(safetensors.torch.load_file(trained / f"{job.name}.safetensors"))
    own, draws = torch.Generator(device).manual_seed(1), torch.Generator().manual_seed(1)
    # As PyTorch lays weights out unless it is told otherwise.
    unoptimised = deepcopy(run.model).to(memory_format=torch.contiguous_format)
    train, cells = digits[0], {"ours": 0.0, "plain": 0.0}
    distinct: list[float] = []
    rule = run.rule
    assert rule is not None

    def ours(images: torch.Tensor, labels: torch.Tensor) -> None:
        loss, metrics, trace = rule(run.model, ImageStack(images), labels, draws, 1.0)
        cells["ours"] += metrics["cells"] / turns
        distinct.append(_distinct(trace))
        _backward(run, loss)

    def plain(images: torch.Tensor, labels: torch.Tensor) -> None:
        found = plain_step(unoptimised, "mnist-m3", images / 255, labels, -0.1, lambda _, __, p: torch.bernoulli(p))
        cells["plain"] += found.cells / turns
        _backward(run, found.loss)

    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(turns):
        index = torch.randint(len(train), (BATCH,), generator=own, device=device)
        images = train.images(index, "plain", resolution, own)
        times["ours"].append(_seconds(partial(ours, images, train.labels[index])))
        times["plain"].append(_seconds(partial(plain, images, train.labels[index])))
    return {
        "resolution": resolution,
        "c_t": c_t,
        **{f"cells_{name}": round(value, 2) for name, value in cells.items()},
        **{f"{name}_images_per_second": round(BATCH / median(values), 1) for name, values in times.items()},
        "ratio": round(median(b / a for a, b in zip(times["ours"], times["plain"], strict=True)), 2),
        "distinct": round(median(distinct), 2),
        "profile": _profile(lambda: ours(images, train.labels[index])),
    }


def _distinct(trace: Trace) -> float:
    """The share of the places that are read, of all that the draws look at."""
    places = np.column_stack([trace.image // DRAWS, trace.depth, trace.column, trace.row])
    return len(np.unique(places, axis=0)) / len(places)


def _backward(run: Run, loss: torch.Tensor) -> None:
    """The weights stay as they are."""
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]


def _seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def _profile(step: Callable[[], None], rows: int = 8) -> list[tuple[str, float]]:
    """The share of a step's time of its most expensive operations; the rest is Python, NumPy and small ones."""
    begun = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    total = (time.perf_counter() - begun) * 1e6
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)[:rows]
    return [(event.key, round(event.self_cpu_time_total / total, 3)) for event in events]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/training_speed"))
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--steps", type=int, default=100, help="of training before the first turn")
    parser.add_argument("--trained", type=Path, help="a folder of benchmarks.topdown_mnist, instead of steps")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    digits = load_digits(asked.data, asked.device)
    found = [
        measure(resolution, c_t, digits, asked.steps, asked.trained, asked.turns, asked.device)
        for resolution, c_t in ((28, 2), (56, 6), (56, 12))
    ]
    table = Table("px", "c_t", "cells ours", "cells plain", "ours, images/s", "plain, images/s", "ratio", "distinct")
    for row in found:
        table.add_row(*(str(value) for name, value in row.items() if name != "profile"))
    Console(width=120).print(table)
    for row in found:
        print(f"{row['resolution']} px, c_t {row['c_t']}:", ", ".join(f"{n} {s:.0%}" for n, s in row["profile"]))
    make_folder(asked.out)
    with written_whole(asked.out / "training_speed.json") as beside:
        beside.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
