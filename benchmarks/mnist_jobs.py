"""Which models the MNIST experiments need, and what each starts from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.mnist_images import Variant
from benchmarks.mnist_train import Job

# Appendix A.5.2.
CELLS = {28: (2.0,), 56: (6.0, 12.0)}

BEYOND: tuple[tuple[dict[str, Any], int, float], ...] = (
    ({"share_cells": True}, 56, 6.0),  # with two levels there is one parent, and nothing to share
    ({"cells": 5}, 28, 2.0),
    ({"baseline": "leave_one_out"}, 28, 2.0),
    ({"lambda_e": 1e-7}, 28, 2.0),
)
"""What the paper has not, each measured against it with M3: options, px, c_t. 5 x 5 cells overlap by three quarters."""


def paper_jobs(variants: Sequence[Variant], pairs: Sequence[int], seeds: Sequence[int]) -> Iterator[Job]:
    """Figure 4's models: 14, 28 and 56 px, from scratch and gradual; parents before children."""
    for seed in seeds:
        for variant in variants:
            for pair in pairs:
                for model in ("M", "BL"):
                    yield Job(variant, pair, model, 14, seed=seed)
                # With two levels rule (4) is the first stage of gradual learning: there is one way.
                for c_t in CELLS[28]:
                    yield Job(variant, pair, "M", 28, c_t, seed=seed)
                for start in ("scratch", "gradual"):
                    yield Job(variant, pair, "BL", 28, start=start, seed=seed)
                for start in ("scratch", "gradual"):
                    yield Job(variant, pair, "BL", 56, start=start, seed=seed)
                    for c_t in CELLS[56]:
                        yield Job(variant, pair, "M", 56, c_t, start, seed)


def beyond_jobs(variants: Sequence[Variant], seeds: Sequence[int]) -> Iterator[Job]:
    """The options that the paper has not."""
    for seed in seeds:
        for variant in variants:
            for options, resolution, c_t in BEYOND:
                yield Job(variant, 3, "M", resolution, c_t, "scratch", seed, tuple(options.items()))


def parent_of(job: Job) -> Job | None:
    """The model whose weights a job starts from."""
    if job.start == "scratch":
        return None
    smaller = replace(job, resolution=job.resolution // 2)
    if job.model == "M":
        return replace(smaller, c_t=CELLS[28][0], start="scratch")
    return replace(smaller, start="scratch" if smaller.resolution == 14 else "gradual")


def select(jobs: Iterable[Job], only: Sequence[str]) -> list[Job]:
    """The jobs whose names hold one of the words, and their parents before them."""
    chosen: dict[str, Job] = {}
    for job in jobs:
        if only and not any(word in job.name for word in only):
            continue
        line = [job]
        while (parent := parent_of(line[-1])) is not None:
            line.append(parent)
        for each in reversed(line):
            chosen.setdefault(each.name, each)
    return list(chosen.values())
