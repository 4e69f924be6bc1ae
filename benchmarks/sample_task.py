"""Does the attention earn its keep? Three models on the sample task.

    python -m benchmarks.sample_task --out runs/sample-task

Trains the default model on sample_data/tissue, a model that has the glance alone, and replaces the trained model's
policy by one that knows nothing and attends as many cells. Prints a table and writes it to ``results.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrtrav.config import make_config
from pyrtrav.methods.topdown import Location, TopDown, TopDownConfig
from pyrtrav.model_file import load_model
from pyrtrav.selection import Settings
from pyrtrav.training.calibrate import budget_for
from pyrtrav.training.data import Dataset, load_dataset
from pyrtrav.training.evaluate import Evaluation, evaluate
from pyrtrav.training.images import OpenImages
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer

Row = dict[str, Any]


def train(dataset: Dataset, out: Path, seed: int, assignments: list[str]) -> Path:
    """Train with the defaults and the assignments; returns the model file."""
    card, config = plan_training(dataset, assignments=assignments)
    return Trainer(dataset, card, config, out, seed=seed).run()


def draw_evaluations(model: TopDown, dataset: Dataset, draws: int = 4) -> list[Evaluation]:
    """Evaluate on the validation images under sampling, as trained."""
    examples = dataset.split("val")
    images = OpenImages(dataset.classes, model.encoder.base_resolution)
    runs = [
        evaluate(model, examples, images, Settings(select="sample", depth=model.max_depth, seed=seed))
        for seed in range(draws)
    ]
    images.close()
    return runs


def blind(model: TopDown, dataset: Dataset, cells: float) -> None:
    """Make the policy attend every cell with one probability, such that it attends ``cells`` on average."""
    assert isinstance(model.location, Location)
    conv = model.location.conv
    assert conv.bias is not None
    low, high = -8.0, 8.0
    with torch.no_grad():
        conv.weight.zero_()
        for _ in range(10):
            conv.bias.fill_((low + high) / 2)
            attended = draw_evaluations(model, dataset, draws=1)[0].mean_cells
            low, high = ((low + high) / 2, high) if attended < cells else (low, (low + high) / 2)


def row(name: str, runs: list[Evaluation]) -> Row:
    accuracies = [run.accuracy for run in runs]
    return {
        "model": name,
        "accuracy": round(float(np.mean(accuracies)), 4),
        "lowest": round(min(accuracies), 4),
        "cells": round(float(np.mean([run.mean_cells for run in runs])), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("sample_data/tissue"))
    parser.add_argument("--out", type=Path, default=Path("runs/sample-task"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, help="a model trained on the data; default: train one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()

    dataset = load_dataset(asked.data, seed=asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(asked.model or train(dataset, asked.out / "trained", asked.seed, asked.set))
    model = loaded.model
    assert isinstance(model, TopDown)
    config = make_config(TopDownConfig, loaded.card.config)
    on_offer = config.cells_on_offer(config.max_depth)

    examples, images = dataset.split("val"), OpenImages(dataset.classes, model.encoder.base_resolution)
    stored = Settings(**{**loaded.card.selection, "depth": config.max_depth})
    sampled = draw_evaluations(model, dataset)
    rows = [
        row("trained, sampled", sampled),
        row(f"trained, stored {stored.select}", [evaluate(model, examples, images, stored)]),
    ]
    by_budget = replace(stored, select="budget", tau=None, budget=budget_for(rows[0]["cells"]))
    rows.append(row("trained, budget of the same mean", [evaluate(model, examples, images, by_budget)]))
    blind(model, dataset, rows[0]["cells"])
    rows.append(row("trained, blind policy", draw_evaluations(model, dataset)))
    glance = train(dataset, asked.out / "glance", asked.seed, [*asked.set, "max_depth=0"])
    glance_model = load_model(glance).model
    rows.append(row("glance alone (depth 0)", [evaluate(glance_model, examples, images, Settings(select="all"))]))

    summary = {
        "data": str(asked.data),
        "seed": asked.seed,
        "set": asked.set,
        "training_seconds": loaded.card.training["seconds"],
        "c_t": config.cells_wanted(config.max_depth),
        "cells_on_offer": on_offer,
        "validation_images": len(examples),
        "rows": rows,
    }
    (asked.out / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(
        f"c_t {summary['c_t']:g} of {on_offer} cells on offer; trained in {summary['training_seconds']:.0f} s; "
        f"{len(examples)} validation images"
    )
    print(f"{'':34}{'accuracy':>10}{'lowest':>10}{'cells':>8}")
    for made in rows:
        print(f"{made['model']:34}{made['accuracy']:>10.3f}{made['lowest']:>10.3f}{made['cells']:>8.2f}")


if __name__ == "__main__":
    main()
