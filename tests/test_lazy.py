"""Only attended tiles are ever decoded: proved from outside, by what the process reads and by damaging the rest."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pyrtrav.errors import CorruptImageError
from pyrtrav.predict import Predictor
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.base import shared_cache
from tests.samples import SLIDE, compared

Span = tuple[int, int]

# Deeper than the sample model goes by itself, so that tiles of every level are attended, and few of them.
LOOK = {"k": 2, "depth": 6}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(device="cpu")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """Every positioned read of the process, as (offset, count)."""
    seen: list[Span] = []
    pread = os.pread

    def noted(fd: int, count: int, offset: int) -> bytes:
        seen.append((offset, count))
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", noted)
    return seen


def stored_tiles(path: Path) -> Iterator[tuple[int, int, int, Span]]:
    """Every tile of every level with its bytes, as an independent library finds them: (level, column, row, span)."""
    with tifffile.TiffFile(path) as tif:
        levels = [page for page in tif.pages if page.is_tiled]
        for level, page in enumerate(sorted(levels, key=lambda page: -page.imagewidth)):
            columns = -(-page.imagewidth // page.tilewidth)
            for i, span in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
                yield level, i % columns, i // columns, span


def overwrite(path: Path, span: Span, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(span[0])
        file.write(data[: span[1]])


def copy_of(folder: Path) -> Path:
    return Path(shutil.copy(SLIDE, folder / "slide.svs"))


def test_bytes_read_are_those_of_the_attended_tiles(predictor: Predictor, reads: list[Span]) -> None:
    record = predictor.predict([SLIDE], predictor.settings(**LOOK))[0].record
    spans = {span for *_, span in stored_tiles(SLIDE)}
    assert set(reads) <= spans
    assert len(reads) == len(set(reads)) == record["cost"]["tiles_decoded"] == record["cost"]["tiles_distinct"]
    assert sum(count for _, count in reads) == record["cost"]["bytes_read"]
    assert record["cost"]["tiles_total"] == len(list(stored_tiles(SLIDE)))


def test_garbage_in_every_other_tile_changes_nothing(predictor: Predictor, reads: list[Span], tmp_path: Path) -> None:
    path = copy_of(tmp_path)
    before = predictor.predict([path], predictor.settings(**LOOK))[0]
    attended = set(reads)
    damaged = 0
    random = np.random.default_rng(0)
    # Tiles of the ground share their bytes; what an attended tile uses is left alone.
    for *_, span in stored_tiles(path):
        if span not in attended and span[1]:
            overwrite(path, span, random.bytes(span[1]))
            damaged += 1
    assert damaged > len(attended)
    # Every level was entered, and the finer ones in part only.
    for level, share in ((0, 0.2), (1, 0.9), (2, 1.0)):
        own = [span in attended for number, *_, span in stored_tiles(path) if number == level]
        assert 0 < sum(own) <= share * len(own)
    shared_cache().clear()
    after = predictor.predict([path], predictor.settings(**LOOK))[0]
    assert compared(before.record, file_changed=True) == compared(after.record, file_changed=True)
    assert before.tree is not None
    assert after.tree is not None
    assert before.tree.nodes == after.tree.nodes


def test_one_damaged_attended_tile_is_named_everywhere(
    predictor: Predictor, reads: list[Span], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of(tmp_path)
    predictor.predict([path], predictor.settings(**LOOK))
    level, column, row, span = next(tile for tile in stored_tiles(path) if tile[3] == reads[-1])
    overwrite(path, span, b"\x55" * span[1])
    shared_cache().clear()
    where = f"level {level}, tile column {column}, row {row}"
    outcome = predictor.predict([path], predictor.settings(**LOOK))[0]
    assert isinstance(outcome.error, CorruptImageError)
    assert where in outcome.record["error"]["message"]

    from pyrtrav.cli import main

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["pyrtrav", *words])
        try:
            main()
        except SystemExit as left:
            return int(left.code or 0)
        return 0

    words = [word for name, value in LOOK.items() for word in (f"--{name}", str(value))]
    out = tmp_path / "results.jsonl"
    assert run("classify", str(path), "--out", str(out), *words) == 1
    record = json.loads(out.read_text())
    assert (record["status"], record["error"]["type"]) == ("error", "CorruptImageError")
    assert where in record["error"]["message"]
    assert run("explain", str(path), "--out", str(tmp_path / "tree.json"), *words) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.jsonl", "slide.svs"]


def test_training_decodes_attended_tiles_only(tmp_path: Path, reads: list[Span]) -> None:
    """A training step reads a small part of its images' bytes."""
    import torch

    from pyrtrav.encoders import build_encoder
    from pyrtrav.methods.topdown import LearningRule, TopDown, TopDownConfig

    config = TopDownConfig(max_depth=3, c_t=3.0)
    model = TopDown(config, build_encoder("residual"), 2)
    with open_pyramid(SLIDE) as image:
        rule = LearningRule(config, 3)
        loss, _, _ = rule(model, [image], torch.tensor([1]), torch.Generator().manual_seed(0))
        loss.backward()
        spans = {span: count for *_, span in stored_tiles(SLIDE) if (count := span[1])}
        assert set(reads) <= set(spans)
        assert sum(count for _, count in reads) == image.cost.bytes_read
        assert image.cost.tiles_decoded < 0.5 * image.tiles_total


def test_openslide_is_asked_for_little_more_than_the_attended_share(data: Path) -> None:
    """The `slide` backend cannot count bytes; its requests are tiles, and few of them for few looks."""
    path = data / "slides" / "test3-TRITC-2-560.ndpi"
    with open_pyramid(path) as image:
        assert image.backend == "slide"
        image.read(image.bounds, 64)
        assert image.cost.bytes_read is None
        assert image.cost.tiles_decoded <= 4


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_sees_the_bytes_of_the_ledger(tmp_path: Path) -> None:
    """Positioned reads are the attended tiles and nothing else; plain reads are the directories and the fingerprint."""
    code = (
        "import json; from pyrtrav.predict import Predictor; p = Predictor(device='cpu');"
        f"print(json.dumps(p.predict([{str(SLIDE)!r}], p.settings(**{LOOK!r}))[0].record['cost']))"
    )
    log = tmp_path / "strace.log"
    words = ["strace", "-f", "-y", "-e", "trace=read,pread64", "-o", str(log), sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode and "ptrace" in done.stderr.lower():
        pytest.skip("this machine forbids tracing")
    seen = {"read": 0, "pread64": 0}
    waiting: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        process, _, said = line.partition(" ")
        call = said.strip().split("(")[0]
        if "resumed>" in said:
            call = waiting.pop(process, "")
        elif SLIDE.name not in said:
            continue
        elif "unfinished" in said:
            waiting[process] = call
            continue
        count = said.rsplit("= ", 1)[-1].strip()
        if call in seen and count.isdigit():
            seen[call] += int(count)
    assert seen["pread64"] == json.loads(done.stdout)["bytes_read"]
    assert seen["read"] < 512 << 10
