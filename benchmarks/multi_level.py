"""One model that can stop at any depth: what gradual (5) and multi-level learning (6) give on the repository's samples.

    python -m benchmarks.multi_level --out runs/multi_level

Trains three models on sample_data/tissue: all depths from the start, gradual, and gradual with the predictions of all
depths trained. Then evaluates each on the validation images as trained (sampled), once for every depth at which it is
told to stop; accuracies are means over four draws. Prints a markdown table and writes ``multi_level.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from pyrtrav.files import make_folder, written_whole
from pyrtrav.model_file import load_model
from pyrtrav.selection import Settings
from pyrtrav.training.data import Dataset, load_dataset
from pyrtrav.training.evaluate import evaluate
from pyrtrav.training.images import OpenImages
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer

WAYS: dict[str, tuple[str, ...]] = {
    "all depths at once, the last one trained": (),
    "gradual (5), the last one trained": ("gradual=true",),
    "gradual and multi-level (6), all trained": ("gradual=true", "multi_level=true"),
}
DRAWS = 4


def measure(dataset: Dataset, way: str, out: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Train one way, or take what was trained before; accuracies by depth."""
    gradual = "gradual=true" in WAYS[way]
    # As many epochs in all: two stages share them.
    length = f"[{epochs // 2}, {epochs - epochs // 2}]" if gradual else str(epochs)
    card, config = plan_training(dataset, assignments=[*WAYS[way], f"epochs={length}"])
    path = out / "model.safetensors"
    if not path.exists():
        trainer = Trainer(dataset, card, config, out, seed=seed)
        trainer.run(resume=(out / "checkpoint.safetensors").exists())
    model = load_model(path).model
    examples = dataset.split("val")
    images = OpenImages(dataset.classes, model.encoder.base_resolution)
    by_depth = []
    for depth in range(model.max_depth + 1):
        runs = [evaluate(model, examples, images, Settings("sample", depth=depth, seed=draw)) for draw in range(DRAWS)]
        by_depth.append({"accuracy": mean(run.accuracy for run in runs), "cells": mean(run.mean_cells for run in runs)})
    images.close()
    return {"way": way, "epochs": length, "seed": seed, "by_depth": by_depth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("sample_data/tissue"))
    parser.add_argument("--out", type=Path, default=Path("runs/multi_level"))
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    dataset = load_dataset(asked.data, seed=asked.seed)
    found = []
    for number, way in enumerate(WAYS):
        out = asked.out / f"way{number}-seed{asked.seed}-epochs{asked.epochs}"
        make_folder(out)
        found.append(measure(dataset, way, out, asked.epochs, asked.seed))
        with written_whole(asked.out / "multi_level.json") as beside:
            beside.write_text(json.dumps(found, indent=1), encoding="utf-8")
    depths = range(len(found[0]["by_depth"]))
    print("| trained | " + " | ".join(f"stopped at depth {depth}" for depth in depths) + " |")
    print("|---" * (len(depths) + 1) + "|")
    for row in found:
        cells = [f"{each['accuracy']:.3f} ({each['cells']:.1f} cells)" for each in row["by_depth"]]
        print(f"| {row['way']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
