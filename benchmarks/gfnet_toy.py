"""Glance and focus on a task whose label needs full resolution, and whose glance says where that is.

    python -m benchmarks.gfnet_toy --out runs/gfnet-toy

Every image has one gray disc at a random place and two paler ones that mean nothing. Single pixels of the gray one form
stripes that lean one way or the other: the label. In the glance, four pixels of the image to one, the stripes are gone;
the disc is not. Trains all stages and prints the accuracy after each look, at the policy's places, at random ones and
at the centre.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pyrtrav.encoders import build_encoder
from pyrtrav.files import make_folder, written_whole
from pyrtrav.methods import Stage
from pyrtrav.methods.gfnet import METHOD, Gfnet, GfnetConfig
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Select, Settings

SIDE, DISC, BASE = 128, 20, 32
"""Pixels along an image, a disc's diameter, and along a patch."""

PERIOD = 4
"""Pixels from stripe to stripe: a glance's pixel holds exactly one of each shade."""

SELECTS: tuple[Select, ...] = ("all", "random", "centre")


def make_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images (image, 1, SIDE, SIDE) in 0..255 and their labels, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=generator)
    centres = torch.rand(count, 3, 2, generator=generator) * (SIDE - DISC) + DISC / 2
    along = torch.arange(SIDE).float()
    pixels = torch.full((count, SIDE, SIDE), 30.0) + 8 * torch.randn(count, SIDE, SIDE, generator=generator)
    # The stripes of either label have the same mean in every block of a glance's pixel.
    stripes = [((along[:, None] + sign * along) % PERIOD < PERIOD / 2).float() * 120 for sign in (1, -1)]
    shades = torch.stack([90 + stripes[0], 90 + stripes[1]])
    for disc, shade in ((2, 70.0), (1, 70.0), (0, None)):
        offset = along + 0.5 - centres[:, disc, :, None]
        inside = offset[:, 0, None, :].square() + offset[:, 1, :, None].square() < (DISC / 2) ** 2
        pixels = torch.where(inside, shades[labels] if shade is None else torch.tensor(shade), pixels)
    return pixels[:, None].clamp(0, 255), labels


def batches(images: Tensor, labels: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's batches in random order."""
    for chosen in torch.split(torch.randperm(len(images), generator=generator), size):
        yield images[chosen], labels[chosen]


def accuracies(model: Gfnet, images: Tensor, labels: Tensor, select: Select) -> list[float]:
    """Return the accuracy after each look."""
    model.eval()
    correct = torch.zeros(model.max_depth + 1)
    with torch.inference_mode():
        for own, truth in zip(torch.split(images, 256), torch.split(labels, 256), strict=True):
            settings = Settings(select, depth=model.max_depth)
            trace = model.look(ImageStack(own), settings, torch.Generator().manual_seed(0))
            beliefs = [model.believe(trace, depth) for depth in range(model.max_depth + 1)]
            correct += torch.stack([(each.argmax(1) == truth).sum() for each in beliefs])
    model.train()
    return [round(value, 4) for value in (correct / len(images)).tolist()]


def train_stage(model: Gfnet, stage: Stage, data: tuple[Tensor, Tensor], epochs: int, lr: float, size: int) -> None:
    """Train one stage with Adam and a rate that falls to zero along a cosine."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    steps = epochs * -(-len(data[0]) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for images, labels in batches(*data, size, generator):
            loss = stage.objective(model, ImageStack(images), labels, generator)[0]
            for turn in range(stage.objective.passes):
                if turn and stage.objective.again is not None:
                    loss = stage.objective.again()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
            schedule.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--looks", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=4, default=[4, 12, 15, 6], help="of each stage")
    parser.add_argument("--lr", type=float, nargs=4, default=[2e-3, 2e-3, 1e-3, 1e-3], help="of each stage")
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    encoder = build_encoder("residual", channels=1, base_resolution=BASE, widths=[8, 16, 32])
    config = GfnetConfig(looks=args.looks, hidden=64, policy_hidden=64, passes=args.passes)
    model = Gfnet(config, encoder, 2)
    data, test = make_images(args.images, args.seed), make_images(1024, args.seed + 1000)
    rows = []
    for stage, epochs, lr in zip(METHOD.stages(config), args.epochs, args.lr, strict=True):
        begun = time.perf_counter()
        train_stage(model, stage, data, epochs, lr, 64)
        seconds = round(time.perf_counter() - begun, 1)
        found: dict[str, list[float]] = {select: accuracies(model, *test, select) for select in SELECTS}
        rows.append({"stage": stage.name, "seconds": seconds, **found})
        print(json.dumps(rows[-1]), flush=True)
    make_folder(args.out)
    with written_whole(args.out / "results.json") as beside:
        options = {name: str(value) for name, value in vars(args).items()}
        beside.write_text(json.dumps({"options": options, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
