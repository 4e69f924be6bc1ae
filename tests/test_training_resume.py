"""A training that is killed, whenever that is, goes on to the weights of one that was not."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrtrav.errors import ConfigError
from pyrtrav.model_file import load_model
from pyrtrav.training.data import load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from tests.toy_images import SMALL, make_images

OPTIONS = [*SMALL, "epochs=[1,2]", "batch_size=2", "gradual=true", "max_depth=2", "c_t=6"]
SAVED = 1 + 3 * 4 + 3
"""Checkpoints of a run that writes one after each step too."""


def train(data: Path, out: Path, *more: str, resume: bool = False) -> None:
    dataset = load_dataset(data)
    card, config = plan_training(dataset, assignments=[*OPTIONS, *more])
    Trainer(dataset, card, config, out, device="cpu").run(resume=resume)


def train_until(data: Path, out: Path, more: list[str], resume: bool, call: str, count: int, after: bool) -> None:
    """Train, and die by SIGKILL at the ``count``-th call of ``os.<call>``, before or after what it does."""
    if call:
        original: Callable[..., Any] = getattr(os, call)
        calls = 0

        def deadly(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            result = original(*arguments) if calls < count or after else None
            if calls == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(os, call, deadly)
    torch.set_num_threads(1)
    train(data, out, *more, resume=resume)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Real processes, which find torch loaded."""
    context = multiprocessing.get_context("forkserver")
    # What a training loads late takes seconds, and starts no threads.
    context.set_forkserver_preload(["pyrtrav.training.trainer", "torch._dynamo", "pyrtrav.pyramid.kernels"])
    return context


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, processes: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert live(processes, folder, out) == 0
    return weights_of(out)


def live(
    processes: ForkServerContext,
    folder: Path,
    out: Path,
    *more: str,
    resume: bool = False,
    seconds: float | None = None,
    call: str = "",
    count: int = 0,
    after: bool = False,
) -> int | None:
    """Train in a process of its own, killed after some seconds or at some call; returns its exit code."""
    process = processes.Process(target=train_until, args=(folder, out, list(more), resume, call, count, after))
    process.start()
    if seconds is not None:
        while process.is_alive() and not (out / "log.jsonl").exists():
            time.sleep(0.001)
        process.join(seconds)
        process.kill()
    process.join()
    return process.exitcode


def weights_of(out: Path) -> Weights:
    return load_model(out / "model.safetensors").model.state_dict()


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_killed_at_moments_that_nothing_chose(
    folder: Path, tmp_path: Path, processes: ForkServerContext, uninterrupted: Weights
) -> None:
    """Again and again, after ever longer lives, with checkpoints between steps, until one life is long enough."""
    out, lives = tmp_path / "run", 0
    while not (out / "model.safetensors").exists():
        resume = (out / "checkpoint.safetensors").exists()
        life = 0.05 * 2.5**lives
        live(processes, folder, out, "checkpoint_steps=1", resume=resume, seconds=life)
        lives += 1
    assert lives > 1
    assert same(weights_of(out), uninterrupted)


@pytest.mark.parametrize(
    ("call", "count", "after", "more"),
    [
        ("fsync", 2, False, []),  # the first checkpoint is written, but has no name yet
        ("fsync", 4, False, []),  # an epoch is logged, its checkpoint is not whole
        ("replace", 5, True, ["checkpoint_steps=1"]),
        ("replace", 1 + SAVED + 1, False, ["checkpoint_steps=1"]),  # trained; the model file is not whole
    ],
)
def test_killed_while_a_file_is_written(
    folder: Path,
    tmp_path: Path,
    processes: ForkServerContext,
    uninterrupted: Weights,
    call: str,
    count: int,
    after: bool,
    more: list[str],
) -> None:
    out = tmp_path / "run"
    assert live(processes, folder, out, *more, call=call, count=count, after=after) == -signal.SIGKILL
    assert not (out / "model.safetensors").exists()
    resume = (out / "checkpoint.safetensors").exists()
    assert live(processes, folder, out, *more, resume=resume) == 0
    assert same(weights_of(out), uninterrupted)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def test_resuming_what_has_ended_changes_nothing(
    folder: Path, tmp_path: Path, processes: ForkServerContext, uninterrupted: Weights
) -> None:
    # In processes of one thread, like the run that it is compared with.
    assert live(processes, folder, tmp_path / "run") == 0
    log = (tmp_path / "run" / "log.jsonl").read_bytes()
    assert live(processes, folder, tmp_path / "run", resume=True) == 0
    assert same(weights_of(tmp_path / "run"), uninterrupted)
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log
    with pytest.raises(ConfigError, match="holds another run"):
        train(folder, tmp_path / "run")
