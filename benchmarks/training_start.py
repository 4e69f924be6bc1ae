"""How long a training of many images takes from the command to its first step.

    python -m benchmarks.training_start --rows 10000

Writes a table of real small PNG files (labels by the shade of each, 100 patients, a fifth for validation by hash), and
reports when each phase was done, by the clock and in seconds of computing. The files stay in --folder for the next
time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CHILD = """
import time
import sys
begun = float(sys.argv[2])
def say(what): print(f"{time.time() - begun:8.2f} s  {time.process_time():8.2f} s  {what}", flush=True)
from pyrtrav.training.data import load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.training.step import Stepper
from pyrtrav.training.trainer import Trainer
say("libraries loaded")
dataset = load_dataset(sys.argv[1])
say(f"table read: {len(dataset.split('train'))} training and {len(dataset.split('val'))} validation images")
card, config = plan_training(dataset, assignments=["epochs=1"])
trainer = Trainer(dataset, card, config, sys.argv[3], device="cpu")
say("model and optimiser made")
step = Stepper.step
def first(self, batch, progress):
    report = step(self, batch, progress)
    say(f"first step taken, {report.seen} images")
    raise SystemExit
Stepper.step = first
trainer.run()
"""


def make_table(folder: Path, rows: int) -> Path:
    """Write ``rows`` images of 96 px and a table of them; what is there already stays."""
    table = folder / "table.csv"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["path,label,group"]
    for number in range(rows):
        path, label = folder / "images" / f"{number:06}.png", number % 2
        if not path.exists():
            pixels = np.random.default_rng(number).integers(90 * label, 90 * label + 120, (96, 96, 3), np.uint8)
            Image.fromarray(pixels).save(path, compress_level=1)
        lines.append(f"images/{path.name},{('dark', 'light')[label]},patient-{number % 100}")
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/training-start"))
    args = parser.parse_args()
    table = make_table(args.folder, args.rows)
    print(f"{'clock':>8}    {'computed':>8}    done")
    with tempfile.TemporaryDirectory() as out:
        subprocess.run([sys.executable, "-c", CHILD, str(table), str(time.time()), f"{out}/run"], check=True)


if __name__ == "__main__":
    main()
