"""Beyond the paper: one trained model under other ways to select cells, and under a moving budget.

    python -m benchmarks.mnist_selection runs/topdown_mnist plain-M3-56-c12-gradual-seed0

Takes a model of the MNIST experiments and looks at the same validation images: by sampling (the paper), by a threshold
on the probabilities, by the k best cells of each fixation, and by the best path products under a budget. The threshold
is the one that attends as many cells on average as sampling does, and so is the budget; the other budgets show how
accuracy moves with cost. Prints a markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from benchmarks.mnist_images import Digits, data_folder, load_digits
from benchmarks.mnist_train import Job, build
from benchmarks.results import read_results
from pyrtrav.methods.topdown import TopDown
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Settings

BATCH = 500


class Found(NamedTuple):
    accuracy: float
    cells: float
    macs: float


def load(folder: Path, name: str) -> tuple[Job, TopDown]:
    """Return a trained top-down model of the experiments."""
    rows = {row["name"]: row for row in read_results(folder / "results.jsonl")}
    if name not in rows or rows[name]["model"] != "M":
        raise SystemExit(f"{folder}: no top-down model named {name}; it has {', '.join(sorted(rows)) or 'none'}")
    row = rows[name]
    kind = {field: row[field] for field in ("variant", "pair", "model", "resolution", "c_t", "start", "seed")}
    job = Job(**kind, options=tuple(map(tuple, row["options"])))
    model = build(job)
    assert isinstance(model, TopDown)
    model.load_state_dict(safetensors.torch.load_file(folder / f"{name}.safetensors"))
    return job, model.eval()


@torch.inference_mode()
def look(model: TopDown, job: Job, digits: Digits, settings: Settings, draws: int = 1) -> Found:
    """Accuracy, cells and multiply-accumulates an image; the images depend on the draw alone."""
    right, cells, macs = 0, 0.0, 0.0
    for draw in range(draws):
        own, decisions = torch.Generator().manual_seed(5_000_000 + draw), torch.Generator().manual_seed(draw)
        for index in torch.split(torch.arange(len(digits)), BATCH):
            images = digits.images(index, job.variant, job.resolution, own)
            trace = model.look(ImageStack(images), settings, decisions)
            right += int((model.believe(trace, settings.depth).argmax(1) == digits.labels[index]).sum())
            cells += float(trace.cells_attended(settings.depth).sum())
            macs += float(sum(model.macs(trace)))
    count = draws * len(digits)
    return Found(right / count, cells / count, macs / count)


def threshold_for(cells: float, attend: Callable[[float], float]) -> float:
    """The tau at which ``attend`` gives about so many cells; it falls with tau."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if attend(middle) > cells else (low, middle)
    return (low + high) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--budgets", type=int, nargs="+", default=(1, 2, 4, 8, 12, 16, 24, 32))
    parser.add_argument("--data", type=Path, default=data_folder())
    asked = parser.parse_args()
    job, model = load(asked.folder, asked.name)
    _, digits = load_digits(asked.data)
    few = Digits(digits.digits[:1000], digits.labels[:1000], digits.grass)  # to fit the threshold on
    depth, shared = model.max_depth, model.config.share_cells

    def run(settings: Settings, on: Digits = digits) -> Found:
        return look(model, job, on, settings, asked.draws)

    sampled = run(Settings("sample", depth=depth, share_cells=shared))
    rows = [("sampled, as trained", sampled)]
    tau = threshold_for(
        sampled.cells, lambda t: run(Settings("threshold", tau=(t,), depth=depth, share_cells=shared), few).cells
    )
    rows.append((f"threshold {tau:.3f}", run(Settings("threshold", tau=(tau,), depth=depth, share_cells=shared))))
    rows += [(f"top {k} of each", run(Settings("topk", k=k, depth=depth, share_cells=shared))) for k in (1, 2, 3)]
    for budget in sorted({*asked.budgets, round(sampled.cells) + 1}):
        rows.append((f"budget {budget}", run(Settings("budget", budget=budget, depth=depth, share_cells=shared))))
    print(f"{asked.name}, {asked.draws} x {len(digits)} validation images\n")
    print("| selection | accuracy, % | cells | MMAC |\n|---|---|---|---|")
    for name, found in rows:
        print(f"| {name} | {100 * found.accuracy:.2f} | {found.cells:.2f} | {found.macs / 1e6:.2f} |")


if __name__ == "__main__":
    main()
