"""What recomputation saves: peak memory and time of one training step against the number of fixations.

    python -m benchmarks.training_memory --fixations 100 1000 4000

Each measurement is a process of its own: forward and backward of learning rule (4) with the default encoder on one
image of random pixels, attended as often as asked. Peak memory is the process's, less its peak before the step; seconds
are of computing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from pyrtrav.encoders import build_encoder
from pyrtrav.encoders.running import Running
from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig
from pyrtrav.pyramid.array import ArrayPyramid

DEPTH = 6


def measure(fixations: int, recompute: bool, precision: str) -> str:
    """Take one step in this process; returns a row: fixations, MB, seconds."""
    torch.manual_seed(0)
    config = TopDownConfig(max_depth=DEPTH, c_t=float(fixations), initial_probability=None, samples=1)
    model = TopDown(config, build_encoder("residual"), 2)
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 4096, 3), np.uint8)
    image, rule = ArrayPyramid(pixels), LearningRule(config, DEPTH)
    labels, generator = torch.tensor([0]), torch.Generator().manual_seed(1)
    model.encoder.running = Running(bfloat16=precision == "bfloat16", recompute=recompute)
    # What is loaded once is not the step's.
    LearningRule(config, 0)(model, [image], labels, generator)[0].backward()
    before, begun = _peak_mb(), time.process_time()
    loss, _, trace = rule(model, [image], labels, generator)
    loss.backward()
    return f"{len(trace.image)} {_peak_mb() - before:.0f} {time.process_time() - begun:.2f}"


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixations", type=int, nargs="+", default=[100, 1000, 4000], help="About how many.")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--child", choices=["kept", "recomputed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(measure(args.fixations[0], args.child == "recomputed", args.precision))
        return
    print(f"{'activations':12} {'fixations':>10} {'peak MB':>9} {'seconds':>8}")
    for fixations in args.fixations:
        for child in ("kept", "recomputed"):
            words = ["--fixations", str(fixations), "--precision", args.precision, "--child", child]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.training_memory", *words],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            count, megabytes, seconds = done.stdout.split()
            print(f"{child:12} {count:>10} {megabytes:>9} {seconds:>8}")


if __name__ == "__main__":
    main()
