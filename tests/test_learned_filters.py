"""Experiments on learned filter sizes: two parts and two optimizers, pruning, resuming, and what the report says."""

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from benchmarks.cifar_images import Pictures
from benchmarks.differences import NOT, REPRODUCED, UNDECIDED
from benchmarks.filters_claims import Results, decide_all, right
from benchmarks.filters_jobs import Job, make_jobs
from benchmarks.filters_report import page
from benchmarks.filters_train import Data, Run, Schedule, build, pruned, share_out
from benchmarks.learned_filters import main
from pyrtrav.encoders import MultiresEncoder
from pyrtrav.errors import ConfigError
from pyrtrav.explain.encoder_chart import save_structures_chart
from tests.test_cifar_images import contents, packed

JOB = Job("learned", filters=4, layers=4)
SCHEDULE = Schedule(3, 1, batch=8, mixing_batch=4, mixing_lr=0.05)


@pytest.fixture(scope="module")
def data() -> Data:
    """Noise, some brighter than other: two classes that a layer or two can tell."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(50) % 2
    pixels = torch.randint(0, 128, (50, 3, 32, 32), generator=generator) + 100 * labels[:, None, None, None]
    whole = Pictures(pixels.to(torch.uint8), labels, ("dark", "bright"))
    return share_out(whole.between(0, 40), whole.between(40, 50))


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.named_parameters()}


def changed(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def never() -> bool:
    return False


class TestParts:
    def test_images_are_shared_out_four_to_one(self, data: Data) -> None:
        pixels = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 32, 32)
        whole = Pictures(pixels, torch.arange(10), data.test.classes)
        filters, mixing, test = share_out(whole, data.test)
        assert filters.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
        assert mixing.labels.tolist() == [8, 9]
        assert mixing.pixels[:, 0, 0, 0].tolist() == [8, 9]
        assert test is data.test

    @pytest.mark.parametrize("arm", ["learned", "learned-depth"])
    def test_each_optimizer_changes_only_its_part(self, data: Data, tmp_path: Path, arm: str) -> None:
        run = Run(replace(JOB, arm=arm), SCHEDULE, data, tmp_path, "cpu")
        run.network.train()
        names = set(weights_of(run.network))
        logits = {name for name in names if name.endswith("logits")}
        batch = data.filters.pixels[:8], data.filters.labels[:8]
        # Twice: with momentum, decay and gradients that an earlier step could have left behind.
        for _ in range(2):
            before = weights_of(run.network)
            run.mixing_step(*batch)
            assert changed(before, run.network) == logits
            before = weights_of(run.network)
            run.filters_step(*batch)
            assert changed(before, run.network) == names - logits

    def test_each_part_is_fed_its_own_images(self, data: Data, tmp_path: Path) -> None:
        """The second part decides nothing but the mixing: without a rate for it, its images make no difference."""

        def filters_after(mixing: Pictures, rate: float) -> dict[str, torch.Tensor]:
            schedule = replace(SCHEDULE, mixing_lr=rate, mixing_weight_decay=0)
            run = Run(JOB, schedule, data._replace(mixing=mixing), tmp_path, "cpu")
            run.train_epoch(0)
            return weights_of(run.network)

        swapped = replace(data.mixing, labels=1 - data.mixing.labels)
        same, other = filters_after(data.mixing, 0.0), filters_after(swapped, 0.0)
        assert all(torch.equal(same[name], other[name]) for name in same)
        same, other = filters_after(data.mixing, 0.05), filters_after(swapped, 0.05)
        assert any(not torch.equal(same[name], other[name]) for name in same if name.endswith("logits"))

    def test_mixing_weights_begin_equal(self, data: Data) -> None:
        encoder = build(JOB, data).encoder
        assert isinstance(encoder, MultiresEncoder)
        assert (encoder.mixing_table() - 0.25).abs().max() < 1e-7

    @pytest.mark.parametrize("arm", ["no-pooling", "predefined", "scale-invariant", "VGG-6"])
    def test_fixed_structures_have_nothing_to_mix(self, data: Data, tmp_path: Path, arm: str) -> None:
        run = Run(replace(JOB, arm=arm), SCHEDULE, data, tmp_path, "cpu")
        assert run.mixer is None
        before = weights_of(run.network)
        run.network.train()
        run.filters_step(data.filters.pixels[:8], data.filters.labels[:8])
        assert changed(before, run.network) == set(before)


class TestTraining:
    def test_it_learns_and_goes_on_to_the_same_weights(self, data: Data, tmp_path: Path) -> None:
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        whole.mkdir()
        parts.mkdir()
        found = Run(JOB, SCHEDULE, data, whole, "cpu").train(never)
        assert found is not None
        assert found["accuracy"] == 1
        for _ in range(3):
            asked = iter((False, True))
            stopped = Run(JOB, SCHEDULE, data, parts, "cpu").train(lambda asked=asked: next(asked))
        assert stopped is not None
        assert stopped["mixing"] == found["mixing"]
        one, other = (safetensors.torch.load_file(folder / f"{JOB.name}.safetensors") for folder in (whole, parts))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert not list(parts.glob("*.checkpoint.*"))

    def test_what_is_pruned_is_tested_trained_on_and_cheaper(self, data: Data, tmp_path: Path) -> None:
        whole = Run(JOB, SCHEDULE, data, tmp_path, "cpu").train(never)
        again = Run(replace(JOB, pruned="one"), SCHEDULE, data, tmp_path, "cpu")
        assert again.mixer is None
        less = again.train(never)
        assert whole is not None
        assert less is not None
        assert less["epochs"] == 1
        assert less["macs"] < whole["macs"]
        assert len(right(less["before"])) == 10
        for full, left in zip(whole["mixing"], less["mixing"], strict=True):
            assert [weight > 0 for weight in left] == [weight == max(full) for weight in full]

    def test_a_parent_that_is_gone_is_named(self, data: Data, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"learned-4x4-seed0\.safetensors: is not there"):
            Run(replace(JOB, pruned="one"), SCHEDULE, data, tmp_path, "cpu")

    @pytest.mark.parametrize(("how", "least"), [("0", 0.0), ("0.2", 0.2), ("one", 1.0)])
    def test_pruned_is_zeroed(self, data: Data, how: str, least: float) -> None:
        network = build(JOB, data).double().eval()
        encoder = network.encoder
        assert isinstance(encoder, MultiresEncoder)
        for logits in encoder.parts().mixing:
            nn.init.normal_(logits, std=1.5, generator=torch.Generator().manual_seed(len(logits)))
        table = encoder.mixing_table()
        images = data.test.pixels
        features = encoder.image(encoder.normalise(images.double() / 255))
        for layer, row in zip(encoder.layers, table, strict=True):
            row[(row < least) & (row < row.max())] = 0
            grids = [nn.functional.max_pool2d(features, 2**r) for r in range(4)]
            found = [layer.block(grid, r) for r, grid in enumerate(grids)]
            full = [each.repeat_interleave(2**r, 2).repeat_interleave(2**r, 3) for r, each in enumerate(found)]
            features = sum((weight * each for weight, each in zip(row, full, strict=True)), torch.zeros(()))
        zeroed = network.classify(features.mean((2, 3)))
        torch.testing.assert_close(pruned(network, how)(images), zeroed)
        assert (table == 0).any() == (how != "0")


def result(arm: str, accuracy: float, seed: int = 0, how: str | None = None, **more: Any) -> dict[str, Any]:
    """A made-up row: right on the first of 1,000 images."""
    bits = np.arange(1000) < round(1000 * accuracy)
    row = {
        "arm": arm, "filters": 16, "layers": 10, "block": "conv", "stride": 1, "seed": seed, "pruned": how,
        "name": f"{arm}-{seed}-{how}", "accuracy": bits.mean(), "test_images": 1000,
        "right": base64.b64encode(np.packbits(bits).tobytes()).decode(), "parameters": 1, "macs": 100, "epochs": 2,
        "epoch_seconds": 2.0, "epoch_processor_seconds": 1.0, "mixing": [[0.25] * 4] * 8, "outputs": [7],
        "schedule": {"epochs": 2, "mixing_lr": 0.01}, "data": "cifar10", "command": "python", "date": "2026-01-01",
        "machine": "none", "torch": "0",
    }  # fmt: skip
    return row | ({} if how is None else {"before": {"accuracy": 0.5}}) | more


class TestReport:
    def test_differences_are_paired(self) -> None:
        found = Results([result("learned", 0.72), result("predefined", 0.70)])
        difference = found.difference(("learned", None), ("predefined", None))
        assert difference.value == pytest.approx(0.02)
        # 20 of 1,000 images differ, all in one direction.
        assert difference.error == pytest.approx((0.02 * 0.98 / 1000) ** 0.5)
        assert difference.above() == REPRODUCED
        assert difference.above(0.02) == UNDECIDED
        assert difference.above(0.04) == NOT

    def test_seeds_count_where_they_differ_more(self) -> None:
        rows = [result("learned", a, seed) for seed, a in enumerate((0.80, 0.60))]
        rows += [result("predefined", 0.65, seed) for seed in (0, 1)]
        difference = Results(rows).difference(("learned", None), ("predefined", None))
        assert difference.value == pytest.approx(0.05)
        assert difference.error == pytest.approx(0.1)
        assert difference.above() == UNDECIDED

    def test_pruned_networks_are_compared_with_one_that_was_fine_tuned_alike(self) -> None:
        mixing = [[0.7 - 0.08 * n, 0.1, 0.1, 0.1 + 0.08 * n] for n in range(8)]
        rows = [result("learned", 0.60, mixing=mixing), result("learned", 0.68, how="0.1", macs=80, mixing=mixing)]
        control = result("learned", 0.72, how="0", mixing=mixing)
        alone, beside = (
            next(line for line in decide_all(Results(some)) if "pruned at 0.1" in line[0])
            for some in (rows, [*rows, control])
        )
        assert (alone[1], alone[2][:4]) == (REPRODUCED, "+8.0")
        assert (beside[1], beside[2][:4]) == (NOT, "-4.0")

    def test_a_page_says_what_was_measured_and_what_was_not(self, tmp_path: Path) -> None:
        falling = [[0.7 - 0.08 * n, 0.1, 0.1, 0.1 + 0.08 * n] for n in range(8)]
        rows = [
            result("no-pooling", 0.5),
            result("learned", 0.7, mixing=falling),
            result("learned", 0.7, how="0.1", macs=80, mixing=falling),
        ]
        text = page(rows, tmp_path / "page.md")
        lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
        assert lines["No Pooling"].startswith("| No Pooling | 50.00 |  | 0.00 | 1.00 | 71.8 | 87.3 | 0.76 |")
        assert lines["Our Model (thr 0.1)"].startswith("| Our Model (thr 0.1) | 70.00 | 50.00 | 0.00 | 0.80 |  | 92.5 ")
        assert lines["learned is more accurate than no pooling (12.1)"].endswith("+20.0 ± 1.3 points | reproduced |")
        assert lines["learned is more accurate than scale invariant (5.7)"].endswith("| not trained yet |")
        assert "20% of the multiply-accumulates spared | reproduced |" in text
        assert "rank correlation 1.00" in lines["layers learn to work ever more coarsely (figure 3: a diagonal)"]
        assert "100 times the paper's" in text
        with Image.open(tmp_path / "page.png") as picture:
            assert picture.format == "PNG"


def test_structures_are_drawn_in_their_colours(tmp_path: Path) -> None:
    one, none = np.eye(4)[[0, 1, 2, 3]], np.zeros((4, 4))
    for name, table in (("one", one), ("none", none)):
        save_structures_chart({"a": (table, (3,)), "b": (none, (3,)), "c": (none, (3,))}, tmp_path / f"{name}.png", "t")
    blue = {}
    for name in ("one", "none"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        blue[name] = int(((pixels[..., 2] - pixels[..., 0] > 90) & (pixels[..., 0] < 20)).sum())
    assert blue["one"] > blue["none"] + 5_000


def test_jobs_come_after_what_they_are_pruned_from() -> None:
    jobs = list(make_jobs(["predefined", "learned"], ["0.1", "one"], [0, 1], JOB))
    assert [job.name for job in jobs] == [
        f"{name}" for seed in (0, 1) for name in (
            f"predefined-4x4-seed{seed}", f"learned-4x4-seed{seed}", f"learned-4x4-seed{seed}-pruned-0.1",
            f"learned-4x4-seed{seed}-pruned-one",
        )
    ]  # fmt: skip


def test_the_command_trains_skips_what_is_done_and_refuses_another_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = packed(tmp_path / "cifar-10-binary.tar.gz", contents("cifar-10", 10, images=4))
    out = tmp_path / "runs"
    options = ["--data", str(archive), "--out", str(out), "--arms", "learned", "--prune", "one", "--filters", "2"]
    options += ["--layers", "3", "--epochs", "1", "--finetune-epochs", "1", "--images", "20", "--batch", "4"]
    options += ["--threads", str(torch.get_num_threads())]

    def run(*more: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["learned_filters", *options, *more])
        main()
        return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]

    rows = run()
    assert [row["name"] for row in rows] == ["learned-2x3-seed0", "learned-2x3-seed0-pruned-one"]
    assert {row["data"] for row in rows} == {archive.name}
    assert run() == rows
    assert "0 of 2 networks are left" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="choose another --out"):
        run("--lr", "0.5")
    with pytest.raises(SystemExit, match="2"):
        run("--arms", "learnt")
    assert "unknown arm 'learnt'; did you mean 'learned'" in capsys.readouterr().err
