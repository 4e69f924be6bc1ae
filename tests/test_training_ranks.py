"""Two processes that share every batch do what one does: the gradients, the weights, the log."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyrtrav import ranks
from pyrtrav.errors import ConfigError
from pyrtrav.geometry import Region
from pyrtrav.model_file import load_model
from pyrtrav.training.data import load_dataset
from pyrtrav.training.hints import Hint, Hints
from pyrtrav.training.log import RunLog
from pyrtrav.training.setup import plan_training
from pyrtrav.training.step import Member, Stepper
from pyrtrav.training.trainer import Trainer
from tests.toy_images import SMALL, make_images

TOPDOWN = [*SMALL, "max_depth=2", "c_t=6", "lambda_e=0.1", "lambda_r=1", "multi_level=true", "batch_size=6"]
CASES = {
    "topdown": ("topdown", TOPDOWN),
    "average": ("topdown", [*TOPDOWN, "baseline=average", "share_cells=false"]),
    "parts": ("topdown", [*TOPDOWN, "accumulate=2", "class_weights=[1,3]"]),
    "hints": ("topdown", [*TOPDOWN, "guide=0.5", "lambda_g=2"]),
    "hints in parts": ("topdown", [*TOPDOWN, "lambda_v=0", "accumulate=2"]),
    "lesson": ("topdown", [*TOPDOWN, "lesson=true"]),
    "policy": ("gfnet", ["looks=3", "passes=2", "accumulate=2", "base_resolution=16", "widths=[4,8]", "batch_size=6"]),
    "mil": ("mil", ["depth=1", "tiles=2", "base_resolution=16", "widths=[4,8]", "batch_size=6"]),
    "fcn": ("fcn", ["halvings=1", "base_resolution=16", "widths=[4,8]", "batch_size=6", "label_smoothing=0.1"]),
}
WILD = {"far": ["lr=1e12"], "at-once": ["lambda_t=1e39", "checkpoint_steps=1"]}
"""Options of runs that diverge: within some steps, and in the first."""

REPORTED = ("loss", "accuracy", "cells")
"""Of the draws that follow no hint, or of the places that show one: each process reports those that it has."""


def make_trainer(folder: Path, out: Path, method: str, options: list[str]) -> Trainer:
    dataset = load_dataset(folder)
    # Of every second image: a process may have none in its share.
    hinted = dataset.split("train")[::2] if "hints" in out.name or out.name == "lesson" else []
    hints = Hints({example.path: (Hint(Region(4.0 * i, 8.0, 9.0, 9.0), "test"),) for i, example in enumerate(hinted)})
    card, config = plan_training(dataset, method=method, assignments=[*options, "epochs=2", "clip=1e9"])
    return Trainer(dataset, card, config, out, device="cpu", hints=hints)


def two_steps(folder: Path, out: Path, method: str, options: list[str]) -> dict[str, Tensor]:
    """The gradients of two steps in double precision, and what the second one's rule remembers of the first."""
    trainer = make_trainer(folder, out, method, options)
    trainer.model.double()
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    stage = trainer.stages[{"lesson": 0, "policy": 2}.get(out.name, -1)]
    stepper = Stepper(trainer.model, stage, trainer.optimizer, trainer.images, trainer.config, trainer.hints)
    members = [Member(example, (0, i)) for i, example in enumerate(trainer.dataset.split("train"))]
    found: dict[str, Tensor] = {}
    # Five images do not divide by two, nor by four.
    for step, batch in enumerate((members[:5], members[3:])):
        report = stepper.step(batch, 1.0)
        for name, weight in trainer.model.named_parameters():
            if weight.grad is not None:
                found[f"{step}.{name}"] = weight.grad.clone()
        found[f"{step}.seen"] = torch.tensor(report.seen)
        found |= {f"{step}.{name}": torch.tensor(value, dtype=torch.float64) for name, value in report.totals.items()}
    # The glance has no b.
    return found | {name: value.nan_to_num() for name, value in stage.objective.state_dict().items()}


def one_blind_step(folder: Path, out: Path) -> dict[str, Tensor]:
    """A step of two images, of which the second process's is not there."""
    trainer = make_trainer(folder, out, *CASES["topdown"])
    stepper = Stepper(trainer.model, trainer.stages[-1], trainer.optimizer, trainer.images, trainer.config)
    there, gone = trainer.dataset.split("train")[:2]
    report = stepper.step([Member(there, (0, 0)), Member(replace(gone, path=str(out / "gone.png")), (0, 1))], 1.0)
    return {"seen": torch.tensor(report.seen), "failed": torch.tensor(len(report.failed))}


def share(number: int, port: int, folder: Path, out: Path) -> None:
    """One of two processes: all cases' steps, then a whole training."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with ranks.joined():
        for name, case in CASES.items():
            save_file(two_steps(folder, out / name, *case), out / f"{name}-{number}.safetensors")
        save_file(one_blind_step(folder, out / "blind"), out / f"blind-{number}.safetensors")
        try:
            make_trainer(folder, out / "small", "topdown", [*TOPDOWN, "accumulate=4"]).run()
        except ConfigError as error:
            (out / f"refused-{number}").write_text(str(error))
        for name, wild in WILD.items():
            try:
                make_trainer(folder, out / name, "topdown", [*TOPDOWN, *wild]).run()
            except ConfigError as error:
                (out / f"{name}-{number}").write_text(str(error))
        trainer = make_trainer(folder, out / "run", "topdown", [*TOPDOWN, "keep=loss"])
        trainer.run()
        save_file(trainer.model.state_dict(), out / f"weights-{number}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def shared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two gloo processes left."""
    out = tmp_path_factory.mktemp("shared")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyrtrav.training.trainer", "torch._dynamo", "pyrtrav.pyramid.kernels"])
    processes = [context.Process(target=share, args=(number, port, folder, out)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return out


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(folder: Path, shared: Path, tmp_path: Path, name: str) -> None:
    """Also of terms that are no mean over images: (2), (3), each attended vector's, and b of (12)."""
    alone = two_steps(folder, tmp_path / name, *CASES[name])
    both = [load_file(shared / f"{name}-{number}.safetensors") for number in range(2)]
    assert alone.keys() == both[0].keys()
    for key, value in alone.items():
        if not (key.split(".")[-1].startswith(REPORTED) and name in ("hints", "lesson")):
            # A figure of the log says what it says with six digits.
            rtol = 1e-6 if key.endswith("hint_loss") else 1e-8
            torch.testing.assert_close(both[0][key], value, rtol=rtol, atol=1e-10)
        assert torch.equal(both[0][key], both[1][key]), key
    if "multi_level=true" in CASES[name][1] and name != "lesson":
        assert float(alone["baseline"][2]) < 0


def test_a_process_that_sees_nothing_stops_none(shared: Path) -> None:
    """The images of the part are left out by all; the missing one is known to all."""
    for number in range(2):
        found = load_file(shared / f"blind-{number}.safetensors")
        assert (int(found["seen"]), int(found["failed"])) == (0, 1)


def test_too_small_a_batch_is_refused_before_it_hangs(shared: Path) -> None:
    """Two processes cannot share parts of one image."""
    assert (shared / "refused-0").read_text() == (shared / "refused-1").read_text()
    assert "raise batch_size or lower accumulate" in (shared / "refused-0").read_text()
    assert not (shared / "small").exists(), "it was refused after something was written"


@pytest.mark.parametrize("name", WILD)
def test_all_processes_stop_where_a_run_diverges(shared: Path, name: str) -> None:
    assert (shared / f"{name}-0").read_text() == (shared / f"{name}-1").read_text()
    assert "not finite since epoch 1" in (shared / f"{name}-0").read_text()
    assert "NaN" not in (shared / name / "log.jsonl").read_text()


def test_a_training_is_that_of_one_process(folder: Path, shared: Path, tmp_path: Path) -> None:
    alone = load_model(make_trainer(folder, tmp_path / "run", "topdown", [*TOPDOWN, "keep=loss"]).run())
    both = load_model(shared / "run" / "model.safetensors")
    for number in range(2):
        weights = load_file(shared / f"weights-{number}.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in both.model.state_dict().items())
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(both.model.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    logs = [RunLog(out / "run").read() for out in (tmp_path, shared)]
    assert len(logs[0]) == len(logs[1]) == 2
    for one, other in zip(*logs, strict=True):
        assert one["metrics"] == pytest.approx(other["metrics"], rel=1e-3, abs=1e-4)


PROGRAM = """
import atexit, sys
from contextlib import suppress
from pathlib import Path
from pyrtrav.cli import main

@atexit.register
def threads() -> None:
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has just ended
            print("left:", name.read_text().strip(), file=sys.stderr)

main()
"""


def test_torchrun_starts_it(folder: Path, tmp_path: Path) -> None:
    """And no thread of gloo is left at the end: one that meets a closed interpreter aborts its process."""
    words = ["train", "--data", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu", "--json"]
    options = [word for option in [*TOPDOWN, "epochs=1"] for word in ("--set", option)]
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run([*start, *words, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == str(tmp_path / "run" / "model.safetensors")
    assert done.stderr.count("epoch 1/1") == 1
    left = [line for line in done.stderr.splitlines() if line.startswith("left:")]
    assert len(left) >= 2 or not Path("/proc/self/task").exists(), "each process has a thread that says so"
    assert not any("gloo" in line for line in left)


@pytest.mark.parametrize(
    ("environment", "missing"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "RANK is 'first'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
    ],
)
def test_half_of_torchrun_s_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], missing: str
) -> None:
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{missing}; start it with torchrun, or unset WORLD_SIZE"):
        with ranks.joined():
            pass


def test_alone_nothing_is_shared() -> None:
    assert (ranks.rank(), ranks.count(), ranks.gather({"a": 1})) == (0, 1, [{"a": 1}])
    assert float(ranks.whole_mean(torch.tensor(6.0), 4)) == 1.5
    assert float(ranks.whole_mean(torch.tensor(0.0), 0)) == 0.0
