"""MNIST segmentation and spatial transformation of "Multigrid Neural Architectures", sections 4.2 and 4.3.

A scene is kept as the poses of its digits alone: its pixels are rendered where they are wanted, for all scenes of a
batch at once, on the device that trains. Everything random is drawn when the poses are, from one seed.

Where the paper is silent, as in the authors' code: five digits in half of the scenes, six in nearly all others; turned
by up to 60 degrees and scaled to 0.5 to 1.25 of their size (to 1.5 where there is one digit), then made brighter until
the brightest pixel is white; a turned and sheared digit is cut to its square of 28 px before it is scaled; of a digit's
pixels that are not black at most 30 % may lie on digits that were there before; digits are added up; a label lies
where a digit is at least 0.3 bright.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, one_hot, pad

from benchmarks.mnist_images import DIGIT, read_idx

SIDE = 64
"""Pixels of a canvas."""
CLASSES = 10
LIT = 0.3
"""Brightness from which on a pixel belongs to a digit."""
OVERLAP = 0.3
"""Largest share of a digit's pixels that lie on others."""
MOST_DIGITS = 7
ATTEMPTS = 200
"""After so many places a digit is left out."""
CHUNK = 1000
"""Scenes that are drawn together."""


@dataclass(frozen=True)
class Task:
    """What is drawn, and what is asked for."""

    outputs: int
    """10 where each class has its labels, 1 where the digit itself is asked for, upright in the middle."""
    train: int
    """Scenes."""
    test: int
    iterations_per_epoch: int
    """Of the paper, which trains for 200 epochs."""
    scale: tuple[float, float] = (1.0, 1.0)
    angle: float = 0.0
    """Largest rotation either way, in degrees."""
    shear: float = 0.0
    """Largest angle of shearing either way, in degrees, along one of the two axes."""
    centred: bool = False

    @property
    def segments(self) -> bool:
        return self.outputs > 1


TASKS = {
    "segmentation": Task(CLASSES, 10_000, 1_000, 150, scale=(0.5, 1.25), angle=60),
    "transformation": Task(1, 60_000, 10_000, 800, scale=(0.5, 1.5), angle=60, shear=60),
    "translation": Task(1, 60_000, 10_000, 800),
    "rotation": Task(1, 60_000, 10_000, 800, angle=60, centred=True),
    "affine": Task(1, 60_000, 10_000, 800, shear=60, centred=True),
}
"""Tables 2 and 3, and the parts of the latter that figure 5 shows."""


@dataclass(frozen=True)
class Digits:
    """Digits on a device."""

    pixels: Tensor
    """(digit, 28, 28) uint8."""
    labels: Tensor
    """(digit) int64."""

    def __len__(self) -> int:
        return len(self.labels)


def load_digit_sets(folder: Path, device: str = "cpu") -> tuple[Digits, Digits]:
    """Return the 60,000 training and the 10,000 test digits.

    Raises:
        FileNotFoundError: the folder has no ``mnist`` with the IDX files.
    """

    def load(name: str) -> Digits:
        pixels = read_idx(folder / "mnist" / f"{name}-images-idx3-ubyte.gz")
        labels = read_idx(folder / "mnist" / f"{name}-labels-idx1-ubyte.gz").astype(np.int64)
        return Digits(torch.from_numpy(pixels).to(device), torch.from_numpy(labels).to(device))

    return load("train"), load("t10k")


@dataclass(frozen=True)
class Poses:
    """How digits lie on their canvases; every field's first dimensions are (...)."""

    turn: Tensor
    """(..., 2, 2): from (x, y) of a scaled digit about its middle to those of the digit as it was."""
    size: Tensor
    """(...) int64: side of the digit's square, in pixels."""
    corner: Tensor
    """(..., 2) int64: column and row of the square."""

    def __getitem__(self, index: Tensor) -> Poses:
        return Poses(self.turn[index], self.size[index], self.corner[index])

    def flat(self) -> Poses:
        return Poses(self.turn.flatten(0, -3), self.size.flatten(), self.corner.flatten(0, -2))


def render(pixels: Tensor, poses: Poses) -> Tensor:
    """Return digits (digit, 28, 28) uint8 as they lie on canvases (digit, 64, 64), 0..1, the brightest pixel 1."""
    scale = (poses.size / DIGIT)[:, None, None]
    middle = (poses.corner + poses.size[:, None] / 2 - SIDE / 2)[:, :, None]
    turn = poses.turn / scale
    # What grid_sample calls 1 is half the side.
    theta = torch.cat([turn * (SIDE / DIGIT), -(turn @ middle) / (DIGIT / 2)], 2)
    grid = affine_grid(theta, [len(pixels), 1, SIDE, SIDE], align_corners=False)
    found = grid_sample(pixels[:, None].float(), grid, padding_mode="zeros", align_corners=False)[:, 0]
    along = torch.arange(SIDE, device=pixels.device)
    far = along - poses.corner[:, :, None]
    inside = (far >= 0) & (far < poses.size[:, None, None])
    found = found * (inside[:, 1, :, None] & inside[:, 0, None, :])
    return found / found.amax((1, 2), keepdim=True).clamp(min=1e-6)


@dataclass(frozen=True)
class Scenes:
    """Scenes of a task: digits and poses. Their pixels are rendered by `batch`."""

    task: Task
    digits: Digits
    which: Tensor
    """(scene, place) int64: digits."""
    there: Tensor
    """(scene, place) bool: places that hold a digit."""
    poses: Poses
    """Of (scene, place)."""

    def __len__(self) -> int:
        return len(self.which)

    def sprites(self, index: Tensor) -> Tensor:
        """Return each digit of some scenes alone: (scene, place, 64, 64) in 0..1."""
        pixels = self.digits.pixels[self.which[index].flatten()]
        alone = render(pixels, self.poses[index].flat()).view(len(index), -1, SIDE, SIDE)
        return alone * self.there[index][:, :, None, None]

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (scene, 1, 64, 64) in 0..1, and targets (scene, output, 64, 64) of 0 and 1."""
        sprites = self.sprites(index)
        images = sprites.sum(1, keepdim=True).clamp(max=1)
        if not self.task.segments:
            upright = self.digits.pixels[self.which[index, 0]]
            return images, pad((upright >= LIT * 255).float(), [(SIDE - DIGIT) // 2] * 4)[:, None]
        labels = one_hot(self.digits.labels[self.which[index]], CLASSES).float()
        lit = (sprites >= LIT).float()
        return images, (torch.einsum("spo,spyx->soyx", labels, lit) > 0).float()


def draw_scenes(task: Task, digits: Digits, count: int, seed: int) -> Scenes:
    """Return new scenes: every digit is used before one is used again."""
    device = digits.labels.device
    generator = torch.Generator(device).manual_seed(seed)
    places = MOST_DIGITS if task.segments else 1
    order = torch.randperm(len(digits), generator=generator, device=device)
    which = order[torch.arange(count * places, device=device) % len(digits)].view(count, places)
    parts = [_draw(task, digits.pixels, some, generator) for some in torch.split(which, CHUNK)]
    there = torch.cat([there for there, _ in parts])
    poses = [pose for _, pose in parts]
    whole = (torch.cat([getattr(pose, name) for pose in poses]) for name in ("turn", "size", "corner"))
    return Scenes(task, digits, which, there, Poses(*whole))


def _draw(task: Task, pixels: Tensor, which: Tensor, generator: torch.Generator) -> tuple[Tensor, Poses]:
    """Return which places (scene, place) hold a digit, and poses for all of them."""
    if not task.segments:
        return torch.ones_like(which, dtype=torch.bool), _lie(task, _turn(task, which.shape, generator), generator)
    device, count = which.device, len(which)
    wanted = torch.normal(5.0, 0.5, (count,), generator=generator, device=device).ceil().clamp(1, MOST_DIGITS)
    taken = torch.zeros(count, SIDE, SIDE, dtype=torch.bool, device=device)
    there, found = [], []
    for place in range(which.shape[1]):
        turn = _turn(task, (count,), generator)
        pose = _lie(task, turn, generator)
        left = torch.nonzero(wanted > place)[:, 0]
        placed = torch.zeros(count, dtype=torch.bool, device=device)
        for _ in range(ATTEMPTS):
            if not len(left):
                break
            once = _lie(task, turn[left], generator)
            covers = render(pixels[which[left, place]], once) > 0
            area = covers.sum((1, 2))
            good = (covers & taken[left]).sum((1, 2)) <= OVERLAP * area
            at = left[good]
            pose.size[at], pose.corner[at], placed[at] = once.size[good], once.corner[good], True
            taken[at] |= covers[good]
            left = left[~good]
        there.append(placed)
        found.append(pose)
    stacked = (torch.stack([getattr(pose, name) for pose in found], 1) for name in ("turn", "size", "corner"))
    return torch.stack(there, 1), Poses(*stacked)


def _turn(task: Task, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return (..., 2, 2): a rotation, then a shear along one of the axes, undone."""

    def uniform(most: float) -> Tensor:
        most = math.radians(most)
        return (2 * torch.rand(shape, generator=generator, device=generator.device) - 1) * most

    angle, slope = uniform(task.angle), uniform(task.shear).tan()
    along_x = torch.rand(shape, generator=generator, device=generator.device) < 0.5
    cos, sin, one = angle.cos(), angle.sin(), torch.ones_like(angle)
    x, y = torch.where(along_x, slope, 0), torch.where(along_x, 0, slope)
    return _matrix(cos, -sin, sin, cos) @ _matrix(one, x, y, one)


def _matrix(*entries: Tensor) -> Tensor:
    return torch.stack(entries, -1).reshape(*entries[0].shape, 2, 2)


def _lie(task: Task, turn: Tensor, generator: torch.Generator) -> Poses:
    """Return poses of a random size, at a random place where the whole square is on the canvas."""
    shape, device = turn.shape[:-2], turn.device
    low, high = task.scale
    scale = low + (high - low) * torch.rand(shape, generator=generator, device=device)
    size = (scale * DIGIT).ceil().long()
    room = SIDE - size
    draw = torch.rand((*shape, 2), generator=generator, device=device)
    corner = (
        (draw * (room[..., None] + 1)).long() if not task.centred else (room // 2)[..., None].repeat_interleave(2, -1)
    )
    return Poses(turn, size, corner)


def batches(count: int, size: int, device: torch.device | str) -> Iterator[Tensor]:
    """Yield the numbers below ``count``, in order, ``size`` at a time."""
    yield from torch.split(torch.arange(count, device=device), size)
