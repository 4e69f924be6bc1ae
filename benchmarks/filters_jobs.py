"""Which networks the experiments on learned filter sizes need, and what each starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pyrtrav.encoders.multigrid import DESIGNS
from pyrtrav.encoders.multires.encoder import STRUCTURES

DEPTH = "learned-depth"
"""The arm that learns its depth too."""

ARMS = (*STRUCTURES, DEPTH, *DESIGNS)
"""Structures of learned filter sizes, and the networks of "Multigrid Neural Architectures"."""

ONE = "one"
"""The pruning that leaves one resolution a layer; the others are thresholds, and 0 leaves everything: a network that
is fine-tuned like the pruned ones, and nothing else."""


@dataclass(frozen=True)
class Job:
    """A network: what it is, and what it starts from."""

    arm: str
    """One of `ARMS`."""
    filters: int = 64
    """Of every layer; of an arm of the multigrid paper its width in 64ths."""
    layers: int = 10
    """The image layer and the classifier count, as in the paper; not of an arm of the multigrid paper."""
    block: str = "conv"
    stride: int = 1
    """Of the image layer; the paper's is 1."""
    seed: int = 0
    pruned: str | None = None
    """A threshold or ``one``: the trained network of this kind, pruned and fine-tuned."""

    @property
    def multigrid(self) -> bool:
        return self.arm in DESIGNS

    @property
    def name(self) -> str:
        kind = f"{self.arm}-{self.filters}" if self.multigrid else f"{self.arm}-{self.filters}x{self.layers}"
        block = "" if self.block == "conv" else f"-{self.block}"
        stride = "" if self.stride == 1 else f"-stride{self.stride}"
        pruned = "" if self.pruned is None else f"-pruned-{self.pruned}"
        return f"{kind}{block}{stride}-seed{self.seed}{pruned}"


def parent_of(job: Job) -> Job | None:
    """The network that a pruned one comes from."""
    return None if job.pruned is None else replace(job, pruned=None)


def make_jobs(arms: Sequence[str], prunings: Sequence[str], seeds: Sequence[int], like: Job) -> Iterator[Job]:
    """The networks of all seeds in order, each before those that are pruned from it."""
    for seed in seeds:
        for arm in arms:
            job = replace(like, arm=arm, seed=seed)
            yield job
            if arm.startswith("learned"):
                yield from (replace(job, pruned=pruning) for pruning in prunings)
