"""What each of many threads and processes does at once: read at random, and compare with a single thread's pixels."""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid
from pyrtrav.pyramid.base import shared_cache

LONG = bool(os.environ.get("PYRTRAV_LONG"))
READS = 10_000 if LONG else 60
TOGETHER = 6
"""Regions in one call of ``read_many``; every second draw is one."""
SMALL_CACHE = 2 << 20
"""A few tiles, so that they are decoded again and again, and dropped while others read."""
SIZE = 96
"""Of the patches."""


class Question(NamedTuple):
    """A region of one of the files, and what a single thread read there."""

    file: int
    region: Region
    answer: bytes


def digest(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16).digest()


def ask(pyramids: list[Pyramid], questions: list[Question], seed: int) -> list[str]:
    """Read at random, one by one and several together; returns what was not as it should be."""
    random, wrong, done = np.random.default_rng(seed), [], 0
    while done < READS:
        first = questions[random.integers(len(questions))]
        if random.random() < 0.5:
            asked, pixels = [first], [pyramids[first.file].read(first.region, SIZE).pixels]
        else:
            same = [question for question in questions if question.file == first.file]
            asked = [same[i] for i in random.integers(len(same), size=TOGETHER)]
            patches = pyramids[first.file].read_many([question.region for question in asked], SIZE)
            wrong += [str(error) for error in patches.errors if error is not None]
            pixels = list(patches.pixels)
        done += len(asked)
        wrong += [
            f"{pyramids[question.file].path} at {question.region}"
            for question, found in zip(asked, pixels, strict=True)
            if digest(found) != question.answer
        ]
    return wrong


def ask_in_child(pyramids: list[Pyramid], questions: list[Question], seed: int, send: Any) -> None:
    shared_cache().max_bytes = SMALL_CACHE
    try:
        send.send(ask(pyramids, questions, seed))
    except Exception as error:  # noqa: BLE001 (the parent shows it)
        send.send([repr(error)])
