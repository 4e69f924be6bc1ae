"""Many images: which, classified how, kept where, and what of it survives what goes wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from pyrtrav import cohort
from pyrtrav.cohort import cluster, results, summary, tables
from pyrtrav.cohort.engine import LocalEngine
from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.predict import IMAGES_AT_ONCE, Input, Outcome, Predictor
from pyrtrav.pyramid import base, isolated
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.selection import Settings
from pyrtrav.tree import ParseTree
from tests.program import Done, run_program
from tests.samples import IMAGES, SLIDE, TISSUE, compared


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> partial[Done]:
    return partial(run_program, capsys, monkeypatch)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(device="cpu")


@pytest.fixture(scope="module")
def slides() -> list[str]:
    """More than two batches of small ones."""
    return [str(path) for path in sorted(TISSUE.rglob("*.tif"))[: 3 * IMAGES_AT_ONCE + 2]]


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal outside measurements; probabilities as far as they may depend on what else was encoded."""
    one, other = compared(one), compared(other)
    for kept in (one, other):
        kept["flat"] = [p for level in kept.pop("levels") for p in level["probabilities"].values()]
        kept.pop("prediction")
    assert one.pop("flat") == pytest.approx(other.pop("flat"), abs=1e-4)
    assert one == other


# Which images.


def some_image(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((70, 70, 3), 200, np.uint8)).save(path)
    return str(path)


def test_patterns_match_images_and_not_their_parts(tmp_path: Path) -> None:
    flat = some_image(tmp_path / "one" / "a.png")
    deep = some_image(tmp_path / "one" / "two" / "b.png")
    zarr = shutil.copytree(IMAGES[2], tmp_path / "one" / "c.ome.zarr")
    (tmp_path / "one" / "notes.txt").write_text("no image")
    for pattern, wanted in (
        ("one/**/*.png", [flat, deep]),
        ("one/*.png", [flat]),
        ("**/*", [flat, zarr, deep]),
        ("one/*", [flat, zarr, deep]),
        ("o?e/[ab].png", [flat]),
    ):
        images, others = cohort.find_images([tmp_path / pattern])
        assert sorted(image.path for image in images) == sorted(map(str, wanted)), pattern
        assert {Path(other).name for other in others} <= {"notes.txt"}
    with pytest.raises(ConfigError, match=r"x\*\.png: matches no image"):
        cohort.find_images([tmp_path / "x*.png"])
    bracket = some_image(tmp_path / "d[1].png")
    assert cohort.find_images([bracket])[0] == [Input(bracket)]


@pytest.mark.parametrize("pages", ["index", "."])
def test_what_a_run_writes_is_not_searched_for_images(
    run: partial[Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(SLIDE, "a.svs")
    for searched in (".", "**/*", "*"):
        words = ("classify", searched, "--out", "r.jsonl", "--index", pages, "--save-trees", "trees", "--resume")
        done = run(*words)
        assert (done.code, len(records_of(tmp_path / "r.jsonl"))) == (0, 1), (searched, done.err)
    assert list((tmp_path / pages / "thumbnails").iterdir())
    found, _ = cohort.find_images([tmp_path / pages / "thumbnails"], without=[tmp_path / pages])
    assert len(found) == 1  # asked for, they are images


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_name_images_and_their_mpp(tmp_path: Path, kind: str) -> None:
    one, two = some_image(tmp_path / "in" / "a.png"), some_image(tmp_path / "b.png")
    rows = {
        "path": ["a.png", "../b.png", "https://host/c.tif"],
        "label": ["x", "y", ""],
        "mpp": [0.25, None, 4.0],
    }
    table = tmp_path / "in" / f"list.{kind}"
    if kind == "csv":
        lines = [
            ",".join("" if value is None else str(value) for value in row) for row in zip(*rows.values(), strict=True)
        ]
        table.write_text("\n".join([",".join(rows), *lines]) + "\n")
    else:
        arrow = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        arrow.write_table(pyarrow.table(rows), table)
    images, _ = cohort.find_images([table, one], mpp=0.5)
    assert images == [Input(one, 0.25), Input(two, 0.5), Input("https://host/c.tif", 4.0)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("path,mpp\na.png,0.5\nb.png,fine\n", r"list\.csv:3: mpp is 'fine'"),
        ("path,mpp\na.png,-1\n", r"list\.csv:2: mpp is '-1'"),
        ("path,mpp\na.png,inf\n", r"list\.csv:2: mpp is 'inf'"),
        ("path,mpp\na.png,1\n./a.png,2\n", r"list\.csv:3: .* has mpp 2, but 1 at .*list\.csv:2"),
        ('path\n""\n,\n', r"list\.csv:3: 2 values where the header names 1"),
        ("name\na.png\n", r"no column 'path'"),
    ],
)
def test_a_wrong_table_is_told_before_anything_is_done(tmp_path: Path, text: str, complaint: str) -> None:
    some_image(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DatasetError, match=complaint):
        cohort.find_images([tmp_path / "list.csv"])


def test_the_mpp_of_a_row_is_the_images(run: partial[Done], tmp_path: Path) -> None:
    shutil.copy(SLIDE, tmp_path / "a.svs")
    shutil.copy(SLIDE, tmp_path / "b.svs")
    (tmp_path / "list.csv").write_text("path,mpp\na.svs,0.3\nb.svs,\n")
    done = run("classify", tmp_path / "list.csv", "--json")
    said = [(record["settings"]["mpp"], record["input"]["mpp"]) for record in map(json.loads, done.out.splitlines())]
    assert said == [(0.3, 0.3), (None, 0.0625)]


# How they are classified.


def test_together_is_as_alone(predictor: Predictor, slides: list[str], tmp_path: Path) -> None:
    settings = predictor.settings()
    images = [Input(path) for path in slides]
    found = {r["input"]["path"]: r for r in cohort.classify(predictor, images, settings, save_trees=tmp_path)}
    assert len(found) == len(slides)
    for path in slides[::3]:
        alone = predictor.predict([path], settings)[0]
        assert alone.tree is not None
        assert_same(found[path], alone.record)
        tree = ParseTree.load(cohort.tree_path(tmp_path, found[path]))
        assert [node.region for node in tree.nodes] == [node.region for node in alone.tree.nodes]


def test_nothing_is_kept_of_an_image(predictor: Predictor, slides: list[str], tmp_path: Path) -> None:
    shared_cache().clear()
    with cohort.ResultFile(tmp_path / "r.jsonl") as out:
        for _ in cohort.classify(predictor, [Input(path) for path in slides], predictor.settings(), out=out):
            pass
    assert len(shared_cache()) == 0
    assert shared_cache().nbytes == 0


class Careless(Predictor):
    """Has a fault that nobody foresaw, with one image."""

    def predict_inputs(self, inputs: Any, settings: Settings | None = None, **options: Any) -> list[Outcome]:
        if any("bad" in asked.path for asked in inputs):
            raise MemoryError("none left")
        return super().predict_inputs(inputs, settings, **options)


def test_an_error_that_nobody_foresaw_costs_one_image(predictor: Predictor, slides: list[str], tmp_path: Path) -> None:
    careless = Careless(predictor.loaded, device="cpu")
    images = [Input(path) for path in (*slides[:4], str(tmp_path / "bad.tif"), *slides[4:6])]
    found = list(cohort.classify(careless, images, careless.settings()))
    failed = [record for record in found if record["status"] != "ok"]
    assert (len(found), len(failed)) == (7, 1)
    assert "bad.tif: MemoryError: none left" in failed[0]["error"]["message"]


def test_leaving_early_leaves_the_predictor_usable(predictor: Predictor, slides: list[str]) -> None:
    records = cohort.classify(predictor, [Input(path) for path in slides], predictor.settings())
    next(records)
    records.close()
    assert predictor.predict(slides[:1])[0].error is None


def test_a_crash_and_a_hang_cost_one_image_each(
    run: partial[Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated.close_readers()
    monkeypatch.setattr(isolated, "IMPORTS", ["tests.broken_readers"])
    names = ["a.svs", "abort.svs", "b.svs", "hang.svs", "c.svs"]
    for name in names:
        shutil.copy(SLIDE, tmp_path / name)
    done = run("classify", tmp_path, "--json", "--isolate", "always", "--max-seconds", "3")
    assert done.code == 1
    found = {record["image"]: record for record in map(json.loads, done.out.splitlines())}
    assert {name: record["status"] for name, record in found.items()} == {
        name: "error" if name in ("abort.svs", "hang.svs") else "ok" for name in names
    }
    assert found["abort.svs"]["error"]["type"] == "CorruptImageError"
    assert "SIGABRT" in found["abort.svs"]["error"]["message"]
    assert found["hang.svs"]["error"]["type"] == "TimeLimitError"
    assert "hang.svs" in done.err
    assert "2 of 5 images failed" in done.err


@pytest.mark.timeout(60)
def test_a_named_pipe_is_a_failed_image(run: partial[Done], tmp_path: Path) -> None:
    """It is not waited for, neither as an image nor for its fingerprint."""
    os.mkfifo(tmp_path / "pipe.svs")
    done = run("classify", tmp_path / "pipe.svs", SLIDE, "--out", tmp_path / "results.jsonl")
    assert done.code == 1
    assert "pipe.svs: is a pipe" in done.err
    assert [record["status"] for record in records_of(tmp_path / "results.jsonl")] == ["error", "ok"]


def test_an_impossible_option_is_no_fault_of_the_images(
    run: partial[Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("classify", SLIDE, "--out", tmp_path / "r.jsonl", "--isolate", "alwyas")
    assert (done.code, "did you mean 'always'" in done.err) == (2, True), done.err
    monkeypatch.setenv("PYRTRAV_TIMEOUT_SECONDS", "soon")
    done = run("classify", "http://127.0.0.1:9/a.tif", SLIDE, "--out", tmp_path / "r.jsonl")
    assert (done.code, "PYRTRAV_TIMEOUT_SECONDS is" in done.err) == (2, True), done.err
    assert not list(tmp_path.iterdir())


# What is kept.


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_names_a_file_whose_name_is_no_text(run: partial[Done], tmp_path: Path, kind: str) -> None:
    pytest.importorskip("pyarrow")
    shutil.copy(SLIDE, os.fsencode(tmp_path) + b"/a\xff.svs")
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / f"r.{kind}"
    assert run("classify", tmp_path, "--out", out).code == 0
    if kind == "parquet":
        from pyarrow import parquet

        assert parquet.read_table(out)["image"].to_pylist() == ["a\\udcff.svs"]
    else:
        assert b"a\xff.svs" in out.read_bytes()


def test_a_table_without_its_lines_is_not_resumed(run: partial[Done], tmp_path: Path) -> None:
    out = tmp_path / "r.csv"
    assert run("classify", SLIDE, "--out", out).code == 0
    (tmp_path / "r.csv.jsonl").unlink()
    done = run("classify", SLIDE, "--out", out, "--resume")
    assert (done.code, "r.csv.jsonl: is missing" in done.err) == (2, True), done.err


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_link_to_results_stays_one(run: partial[Done], tmp_path: Path, kind: str) -> None:
    link, file = tmp_path / f"r.{kind}", tmp_path / "far" / "kept"
    file.parent.mkdir()
    link.symlink_to(file)
    assert run("classify", SLIDE, "--out", link).code == 0
    with cohort.ResultFile(link, resume=True), pytest.raises(ConfigError, match="is writing to it"):
        cohort.ResultFile(link, resume=True)
    assert run("classify", SLIDE, "--budget", 2, "--out", link, "--resume").code == 0
    assert link.is_symlink()
    assert len(records_of(file if kind == "jsonl" else file.with_name("kept.jsonl"))) == 2
    assert {path.name for path in file.parent.iterdir()} <= {"kept", "kept.jsonl"}


def test_a_changed_image_is_done_again_and_stands_once(run: partial[Done], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.svs", "b.svs")]
    for path in paths:
        shutil.copy(SLIDE, path)
    out = tmp_path / "results.csv"
    assert run("classify", *paths, "--out", out).code == 0
    before = records_of(tmp_path / "results.csv.jsonl")
    os.utime(paths[0], (1, 1))
    assert run("classify", *paths, "--out", out, "--resume").code == 0
    after = {record["image"]: record for record in records_of(tmp_path / "results.csv.jsonl")}
    assert after["b.svs"] == before[1]
    assert after["a.svs"]["input"]["fingerprint"] != before[0]["input"]["fingerprint"]
    assert len(records_of(tmp_path / "results.csv.jsonl")) == 2
    with out.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_tree_is_of_the_run_that_its_record_tells_of(run: partial[Done], tmp_path: Path) -> None:
    trees, out = tmp_path / "trees", tmp_path / "results.jsonl"
    for budget in (2, 9, 2):
        words = ("classify", SLIDE, "--out", out, "--resume", "--save-trees", trees, "--budget", budget)
        assert run(*words).code == 0
    records = records_of(out)
    assert [record["settings"]["budget"] for record in records] == [2, 9]
    for record in records:
        tree = ParseTree.load(cohort.tree_path(trees, record))
        assert tree.record == record
        assert len(tree.nodes) == record["cost"]["fixations"]


def test_a_long_name_costs_no_run(run: partial[Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trees, out = tmp_path / "in", tmp_path / "trees", tmp_path / "r.jsonl"
    folder.mkdir()
    names = ["a.svs", f"{'ä' * 120}b.svs"]
    for name in names:
        shutil.copy(SLIDE, folder / name)
    words = ("classify", folder, "--out", out, "--save-trees", trees)
    assert run(*words).code == 0
    assert {ParseTree.load(path).record["image"] for path in trees.iterdir()} == set(names)
    # Some file systems take less: then that image has failed.
    out.unlink()
    monkeypatch.setattr(results, "STEM_BYTES", 250)
    done = run(*words)
    assert (done.code, "name too long" in done.err) == (1, True)
    assert {r["image"]: r["status"] for r in records_of(out)} == dict(zip(names, ("ok", "error"), strict=True))


@pytest.mark.parametrize("trees", [False, True])
def test_a_full_disk_ends_the_run_and_says_so(run: partial[Done], tmp_path: Path, trees: bool) -> None:
    words = ["classify", SLIDE, *IMAGES, "--out", tmp_path / "r.jsonl", "--resume"]
    words += ["--save-trees", tmp_path / "trees"] if trees else []
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
    try:
        done = run(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert done.code == 2
    assert re.search(r"(tree\.json|r\.jsonl): cannot be .*: File too large; make room, and ", done.err), done.err
    assert "fault" not in done.err
    assert run(*words).code == 0
    assert len(records_of(tmp_path / "r.jsonl")) == len({SLIDE, *IMAGES})


def test_what_a_lost_power_left_is_dropped_or_told(run: partial[Done], tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    words = ("classify", *IMAGES[:2], "--out", out, "--resume")
    out.write_bytes(bytes(4096))
    assert run(*words).code == 0
    whole = out.read_bytes()
    for tail in (bytes(4096), b"}" + bytes(9), b'{"schema": "py'):
        out.write_bytes(whole + tail)
        assert run(*words).code == 0
        assert out.read_bytes() == whole
    first, second = whole.splitlines(keepends=True)
    out.write_bytes(first + bytes(99) + b"\n" + second)
    done = run(*words)
    assert done.code == 2
    assert "r.jsonl:2: is damaged" in done.err
    said = re.search(r"\((sed .*)\)", done.err)
    assert said is not None
    subprocess.run(said[1], shell=True, check=True)
    assert run(*words).code == 0
    assert out.read_bytes() == whole
    out.write_text("a note of mine")
    assert "is no result file" in run(*words).err


def test_a_failure_is_tried_again(run: partial[Done], tmp_path: Path) -> None:
    good, late, out = tmp_path / "a.svs", tmp_path / "late.svs", tmp_path / "results.jsonl"
    shutil.copy(SLIDE, good)
    assert run("classify", good, late, "--out", out).code == 1
    shutil.copy(SLIDE, late)
    assert run("classify", good, late, "--out", out, "--resume").code == 0
    assert [(record["image"], record["status"]) for record in records_of(out)] == [("a.svs", "ok"), ("late.svs", "ok")]


def test_one_process_at_a_time_writes(run: partial[Done], tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    code = (
        "import time; from pathlib import Path; from pyrtrav.lock import WriterLock\n"
        f"held = WriterLock(Path({str(out)!r})); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        done = run("classify", SLIDE, "--out", out)
        assert done.code == 2
        assert f"process {other.pid} on " in done.err.replace("\n", "")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert run("classify", SLIDE, "--out", out).code == 0  # a dead process holds nothing
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"r\.jsonl: cannot be locked"):
            cohort.ResultFile(tmp_path / "r.jsonl")
    assert not list(tmp_path.iterdir())


def test_tables_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns and types are those of all records, wherever they stand."""
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)
    records = [{"a": {"b": None}}, {"a": {"b": 1}}, {"c": "x"}, {"a": {"b": 0.5}, "d": [1, 2]}, {"c": None}]
    tables.write_csv(lambda: iter(records), tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["a.b"] for row in rows] == ["", "1", "", "0.5", ""]
    assert rows[3]["d"] == "[1, 2]"
    parquet = pytest.importorskip("pyarrow.parquet")
    tables.write_parquet(lambda: iter(records), tmp_path / "t.parquet")
    columns = parquet.read_table(tmp_path / "t.parquet").to_pydict()
    assert columns["a.b"] == [None, 1.0, None, 0.5, None]
    assert columns["c"] == [None, None, "x", None, None]


def test_what_images_warn_of_is_said_once() -> None:
    said = cohort.Summary()
    for number in range(5):
        text = f"the image has no usable mpp (the file says {number} um), and this model needs none"
        said.add({"status": "ok", "image": f"{number}.svs", "warnings": [text], "input": {"mpp": None}})
        said.add({"status": "ok", "image": f"{number}.png", "input": {"mpp": None}})
        said.add({"status": "error", "error": {"message": f"{number}: broken"}})
    assert len(said.warnings) == len(said.notes) == 1
    assert "5 images (0.svs, 1.svs, 2.svs, ...)" in said.warnings[0]
    assert "5 images (0.png, 1.png, 2.png, ...)" in said.notes[0]
    assert (said.images, len(said.failures)) == (15, 5)
    assert summary.NAMED == 3


def test_a_long_table_is_cut(run: partial[Done], slides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrtrav.cli.classify.ROWS", 4)
    done = run("classify", *slides[:6])
    assert sum(".tif" in line for line in done.out.splitlines()) == 4
    assert "and 2 more" in done.err


# What survives.


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of enough images to be interrupted among."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, path in enumerate(sorted(TISSUE.rglob("*.tif"))[:60]):
        os.link(path, folder / f"{number:02d}.tif")
    return folder


def started(folder: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    call = "from pyrtrav.cli import main; main()"
    command = [sys.executable, "-c", call, "classify", str(folder), "--out", str(out), "--device", "cpu", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_lines(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < count:
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_stopped_killed_and_resumed_is_as_undisturbed(many: Path, tmp_path: Path, predictor: Predictor) -> None:
    """Signals stop it cleanly; after any end the rest is done, nothing twice, and the results are the same."""
    out = tmp_path / "results.jsonl"
    ends = ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL))
    for lines, (number, code) in zip((1, 17, 33), ends, strict=True):
        process = started(many, out, *(["--resume"] if out.exists() else []))
        wait_for_lines(out, lines, process)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == code, said
        assert "Traceback" not in said
        if code > 0:
            assert "go on with the same command and --resume" in said
            assert sorted(path.name for path in tmp_path.iterdir()) == ["results.jsonl", "slides"]
            assert lines <= len(records_of(out)) < 60
    process = started(many, out, "--resume")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    found = {record["input"]["path"]: record for record in records_of(out)}
    assert len(records_of(out)) == len(found) == 60
    images, _ = cohort.find_images([many])
    for record in cohort.classify(predictor, images, predictor.settings()):
        assert_same(found[record["input"]["path"]], record)


@pytest.mark.parametrize("kept", [True, False])
def test_whose_output_nobody_reads(many: Path, tmp_path: Path, kept: bool) -> None:
    """As before ``| head -1``: results are all kept; where they are not, nobody waits for them."""
    out = tmp_path / "results.jsonl"
    call = "from pyrtrav.cli import main; main()"
    words = ["classify", str(many), "--json", "--quiet", *(["--out", str(out)] if kept else [])]
    process = subprocess.Popen([sys.executable, "-c", call, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (0 if kept else 141, b"")
    assert not kept or len(records_of(out)) == 60


# Many machines.


def test_ray_gives_the_same_and_survives_a_lost_worker(predictor: Predictor, slides: list[str], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    own = Predictor(predictor.loaded, device="cpu")
    settings = own.settings()
    images = [Input(path) for path in slides]
    engine = cohort.make_engine("ray", own, settings, device="cpu", workers=2)
    with cohort.ResultFile(tmp_path / "results.jsonl") as out:
        records = cohort.classify(own, images, settings, out=out, engine=engine)
        first = next(records)
        victim = ray.get(engine._workers[0].process.remote())  # type: ignore[attr-defined]
        os.kill(victim, signal.SIGKILL)
        found = [first, *records]
    assert not ray.is_initialized()
    assert sorted(record["input"]["path"] for record in found) == sorted(slides)
    alone = {record["input"]["path"]: record for record in cohort.classify(predictor, images, settings)}
    for record in found:
        assert_same(record, alone[record["input"]["path"]])
    with cohort.ResultFile(tmp_path / "results.jsonl", resume=True) as out:
        again = list(cohort.classify(predictor, images, settings, out=out, engine=NoEngine(predictor, settings)))
    assert again == [next(r for r in found if r["input"]["path"] == path) for path in slides]


class BreakableWorker(cluster.Worker):
    """Its readers end its process on files that are named so."""

    def __init__(self, *words: Any) -> None:
        import_module("tests.broken_readers")
        super().__init__(*words)


def test_an_image_that_ends_its_ray_worker_fails_alone(
    predictor: Predictor, slides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setattr(cluster, "Worker", BreakableWorker)
    bad = str(shutil.copy(slides[0], tmp_path / "abort.tif"))
    own = Predictor(predictor.loaded, device="cpu")
    settings = own.settings()
    images = [Input(path) for path in [*slides[:3], bad, *slides[3:]]]
    engine = cohort.make_engine("ray", own, settings, device="cpu", workers=2)
    found = {r["input"]["path"]: r["status"] for r in cohort.classify(own, images, settings, engine=engine)}
    assert found == {**dict.fromkeys(slides, "ok"), bad: "error"}


@pytest.mark.parametrize("option", ["--save-trees", "--index"])
def test_a_folder_that_is_none_is_told_before_workers_start(run: partial[Done], tmp_path: Path, option: str) -> None:
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    (tmp_path / "file").touch()
    done = run("classify", SLIDE, "--engine", "ray", "--workers", 1, option, tmp_path / "file")
    started = ray.is_initialized()
    ray.shutdown()
    assert (done.code, started) == (2, False), done.err
    assert "cannot be used as a folder" in done.err


class NoEngine(LocalEngine):
    """For what is to be there already."""

    def put(self, batch: Any) -> None:
        raise AssertionError(f"done again: {batch}")


@pytest.fixture(scope="module", autouse=True)
def _no_reader_is_left() -> Iterator[None]:
    yield
    isolated.close_readers()


def test_an_index_shows_every_image_and_leads_to_its_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken <b>.tif"
    broken.write_bytes(IMAGES[0].read_bytes()[:3000])
    pages, trees = tmp_path / "pages", tmp_path / "trees"
    words = ("classify", *IMAGES, broken, "--index", pages, "--save-trees", trees, "--device", "cpu")
    assert run_program(capsys, monkeypatch, *words).code == 1
    text = (pages / "index.html").read_text(encoding="utf-8")
    for image in IMAGES:
        assert image.name in text
    assert "broken &lt;b&gt;.tif" in text
    assert "<b>" not in text
    links = re.findall(r'(?:href|src)="\./([^"#]+)"', text)
    found = [(pages / unquote(link)).resolve() for link in links]
    assert all(path.is_file() for path in found)
    assert sum(path.suffix == ".jpg" for path in found) == len(IMAGES)
    assert {path for path in found if path.suffix == ".json"} == set(trees.resolve().glob("*.json"))
    for path in trees.glob("*.json"):
        nodes = ParseTree.load(path).nodes
        assert all(node.contribution is not None for node in nodes[1:])


def test_an_index_reads_each_image_once_and_keeps_nothing_of_it(predictor: Predictor, tmp_path: Path) -> None:
    image = tmp_path / "a.svs"
    shutil.copy(SLIDE, image)
    folder = tmp_path / "pages"

    def indexed(**options: Any) -> dict[str, int]:
        record = predictor.predict_inputs([Input(str(image))])[0].record
        with cohort.Index(folder, 1, **options) as pages:
            pages.add(record)
        return {path.name: path.stat().st_ino for path in folder.glob("thumbnails/*.jpg")}

    shared_cache().clear()
    tokens = dict(base._TOKENS)
    assert indexed(max_seconds=1e-9) == {}
    first = indexed()
    assert (len(first), len(shared_cache()), base._TOKENS) == (1, 0, tokens)
    assert indexed() == first
    os.utime(image, (1, 1))
    assert len(indexed()) == 2
