"""The command line as a user meets it: results on stdout, the rest on stderr, and an exit code."""

import csv
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pyrtrav.cohort import tree_path
from pyrtrav.tree import RESULT_SCHEMA, ParseTree, check
from tests.program import Done, run_program
from tests.samples import IMAGES, SLIDE, TISSUE, compared


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run the program in this process."""
    return partial(run_program, capsys, monkeypatch)


Run = Callable[..., Done]


def records(text: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in text.splitlines()]
    for record in found:
        check(record, RESULT_SCHEMA, "record")
    return found


def test_info_says_what_an_image_is(run: Run) -> None:
    done = run("info", SLIDE, "--json")
    assert done.code == 0
    said = json.loads(done.out)
    assert (said["backend"], said["mpp"]) == ("tiff", 0.0625)
    assert [round(level["downsample"]) for level in said["levels"]] == [1, 4, 16]
    assert said["costs"][0]["cells"] == 1
    assert "downsample" in run("info", SLIDE).out


def test_info_and_help_do_not_import_torch() -> None:
    for words in (["--help"], ["info", str(SLIDE)], ["classify", "--help"]):
        code = f"import sys; sys.argv = ['pyrtrav', *{words!r}]\nfrom pyrtrav.cli import main\n"
        code += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_classify_prints_a_record_a_line_and_a_table(run: Run) -> None:
    done = run("classify", *IMAGES, "--json")
    assert done.code == 0
    assert [record["image"] for record in records(done.out)] == [image.name for image in IMAGES]
    assert "clinical" in done.err  # the small model says what it is not
    table = run("classify", *IMAGES, "--quiet")
    assert table.err == ""
    assert all(image.name[:8] in table.out for image in IMAGES)


def test_explain_equals_classify(run: Run, tmp_path: Path) -> None:
    for look in ([], ["--budget", "20"], ["--select", "sample", "--seed", "3"], ["--k", "2"]):
        record = records(run("classify", SLIDE, "--json", "--save-trees", tmp_path / "trees", *look).out)[0]
        done = run("explain", SLIDE, "--out", tmp_path / "tree.json", "--foveated", tmp_path / "seen.png", *look)
        assert done.code == 0
        explained = ParseTree.load(tmp_path / "tree.json")
        saved = ParseTree.load(tree_path(tmp_path / "trees", record))
        assert compared(explained.record) == compared(record) == compared(saved.record)
        assert explained.nodes == saved.nodes
        for picture in ("tree.png", "seen.png"):
            Image.open(tmp_path / picture).verify()


def test_a_saved_tree_is_redrawn_without_a_model(tmp_path: Path, run: Run) -> None:
    run("explain", SLIDE, "--out", tmp_path / "tree.json")
    first = (tmp_path / "tree.png").read_bytes()
    (tmp_path / "tree.png").unlink()
    code = (
        f"import sys; sys.argv = ['pyrtrav', 'explain', '--tree', {str(tmp_path / 'tree.json')!r}]\n"
        "from pyrtrav.cli import main; main(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "tree.png").read_bytes() == first


def test_no_result_takes_the_place_of_the_image(run: Run, tmp_path: Path) -> None:
    image = tmp_path / "scene.png"
    image.write_bytes(IMAGES[3].read_bytes())
    done = run("explain", image, "--out", tmp_path / "scene.json")  # the overlay would be scene.png
    assert done.code == 2
    assert "overwrite the image" in done.err
    assert run("explain", image, "--out", tmp_path / "tree.json", "--overlay", image).code == 2
    assert run("explain", image, "--out", tmp_path / "tree.json").code == 0
    (tmp_path / "tree.json").rename(tmp_path / "scene.json")
    assert run("explain", "--tree", tmp_path / "scene.json").code == 2
    assert image.read_bytes() == IMAGES[3].read_bytes()


def test_names_are_printed_as_they_are(run: Run, tmp_path: Path) -> None:
    """Brackets are no markup, and a name need not be text."""
    bad = [tmp_path / os.fsdecode(name) for name in (b"x[old].svs", b"x[/y].svs", b"caf\xe9.svs")]
    for path in bad:
        path.parent.mkdir(exist_ok=True)
        path.write_text("no slide")
    out = tmp_path / "results.jsonl"
    done = run("classify", *bad, SLIDE, "--out", out, "--json")
    assert done.code == 1
    assert "x[old].svs" in done.err
    assert "x[/y].svs" in done.err
    assert len(records(out.read_text())) == 4


def test_resume_leaves_other_files_alone(run: Run, tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    for text in ("my notes", "my notes\n", '{"a": 1}\n', "[]\n"):
        notes.write_text(text)
        assert run("classify", SLIDE, "--out", notes, "--resume").code == 2
        assert notes.read_text() == text


def test_other_settings_are_other_results(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    assert run("classify", SLIDE, "--out", out).code == 0
    for look, count in (([], 1), (["--mpp", "4"], 2), (["--budget", "3"], 3), ([], 3)):
        assert run("classify", SLIDE, "--out", out, "--resume", *look).code == 0
        assert len(out.read_text().splitlines()) == 1 + count


def test_results_are_kept_and_resumed(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    assert run("classify", *IMAGES[:2], "--out", out).code == 0
    first = out.read_text()
    assert run("classify", *IMAGES, "--out", out).code == 2  # it exists
    out.write_text(first + '{"torn": ')
    assert run("classify", *IMAGES, "--out", out, "--resume").code == 0
    lines = out.read_text().splitlines()
    assert lines[:2] == first.splitlines()
    assert [record["image"] for record in records(out.read_text())] == [image.name for image in IMAGES]


def test_tables_of_results(run: Run, tmp_path: Path) -> None:
    assert run("classify", *IMAGES[:2], "--out", tmp_path / "results.csv").code == 0
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [image.name for image in IMAGES[:2]]
    assert float(rows[0]["prediction.probabilities.lesion"]) >= 0
    pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")
    import pyarrow.parquet

    assert run("classify", *IMAGES[:2], "--out", tmp_path / "results.parquet").code == 0
    assert pyarrow.parquet.read_table(tmp_path / "results.parquet").num_rows == 2


def test_a_folder_of_images(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "a.png", "sub/c.png", ".hidden.png"):
        Image.fromarray(np.full((80, 80, 3), 200, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    done = run("classify", tmp_path, "--json")
    assert [record["image"] for record in records(done.out)] == ["a.png", "b.png", "c.png"]
    assert "notes.txt" in done.err


@pytest.mark.parametrize(("width", "height"), [(1, 1), (30, 20), (1, 100_000), (63, 64)])
def test_small_and_narrow_images_work(run: Run, tmp_path: Path, width: int, height: int) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(np.full((height, width, 3), 180, np.uint8)).save(image)
    done = run("explain", image, "--out", tmp_path / "tree.json")
    assert done.code == 0
    assert ("narrow" in done.err) == (height == 100_000)
    tree = ParseTree.load(tmp_path / "tree.json")
    assert tree.record["status"] == "ok"
    if max(width, height) <= 64:
        assert len(tree.nodes) == 1


def broken_slide(folder: Path, share: float) -> Path:
    path = folder / f"cut-{share}.svs"
    whole = SLIDE.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def test_bad_images_fail_alone_and_are_named(run: Run, tmp_path: Path) -> None:
    """Missing, empty, text, truncated, unreadable: a message each, exit 1, a record each, the good one done."""
    (tmp_path / "empty.svs").touch()
    (tmp_path / "text.svs").write_text("This is no slide.\n" * 50)
    bad = [tmp_path / "missing.svs", tmp_path / "empty.svs", tmp_path / "text.svs"]
    bad += [broken_slide(tmp_path, share) for share in (0.01, 0.3, 0.6)]
    out = tmp_path / "results.jsonl"
    done = run("classify", *bad, SLIDE, "--out", out)
    assert done.code == 1
    kept = records(out.read_text())
    assert [record["status"] for record in kept] == ["error"] * len(bad) + ["ok"]
    for path, record in zip(bad, kept, strict=False):
        assert str(path) in record["error"]["message"]
        assert path.name in done.err.replace("\n", "")
    for path in bad:
        tree = tmp_path / "tree.json"
        done = run("explain", path, "--out", tree)
        assert (done.code, done.out) == (1, "")
        assert path.name in done.err
        assert not tree.exists()
        assert not tree.with_suffix(".png").exists()
        assert run("info", path).code in (0, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permissions_are_named(run: Run, tmp_path: Path) -> None:
    locked = tmp_path / "locked.svs"
    locked.write_bytes(SLIDE.read_bytes())
    locked.chmod(0)
    done = run("classify", locked)
    assert done.code == 1
    assert "ermission" in done.err


def test_wrong_usage_is_told_in_a_line(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(pickle.dumps({"weights": [1.0]}))
    (tmp_path / "empty").mkdir()
    one = tmp_path / "one"
    for label, count in (("a", 1), ("b", 2)):
        (one / label).mkdir(parents=True)
        for i in range(count):
            shade = np.random.default_rng(len(label) + i).integers(0, 255, (80, 80, 3), np.uint8)
            Image.fromarray(shade).save(one / label / f"{label}{i}.png")
    same = tmp_path / "same"
    for label in "ab":
        (same / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((80, 80, 3), i, np.uint8)).save(same / label / f"{i}.png")
    table = tmp_path / "table.csv"
    table.write_text("path,label\nmissing.tif,a\n")
    boxes, hinted = tmp_path / "boxes.csv", tmp_path / "hinted.csv"
    boxes.write_text("path,left,top,right,bottom\nmissing.tif,1,2,3,4\n")
    hinted.write_text(f"path,left,top,right,bottom\n{TISSUE / 'train/clear/000.tif'},1,2,3,4\n")
    trained = ["--out", tmp_path / "trained"]
    cases: list[tuple[list[object], str]] = [
        (["classify", tmp_path / "empty"], "holds no image"),
        (["classify", SLIDE, "--model", model], "not a safetensors file"),
        (["classify", SLIDE, "--model", tmp_path / "none.safetensors"], "no such model file"),
        (["classify", SLIDE, "--select", "treshold"], "unknown selection"),
        (["classify", SLIDE, "--budget", "0"], "1 or more"),
        (["classify", SLIDE, "--device", "tpu"], "tpu"),
        (["classify", SLIDE, "--device", "vulkan"], "has none; usable are: auto, cpu"),
        (["classify", SLIDE, "--model", tmp_path / "empty"], "is a folder; name a file"),
        (["classify", SLIDE, "--out", tmp_path / "results.xls"], "written as"),
        (["classify", SLIDE, "--out", tmp_path / "no" / "results.jsonl"], "does not exist"),
        (["explain", SLIDE, "--out", tmp_path / "tree.txt"], "ends in .json"),
        (["explain", SLIDE, "--out", tmp_path / "no" / "tree.json"], "does not exist"),
        (["explain", "--tree", table], "parse tree"),
        (["train", "--data", TISSUE, "--set", "epoch=3", *trained], "did you mean 'epochs'"),
        (["train", "--data", TISSUE, "--set", "epochs=many", *trained], "epochs"),
        (["train", "--data", TISSUE, "--encoder", "resnet", *trained], "unknown encoder"),
        (["train", "--data", TISSUE, "--method", "topdwn", *trained], "did you mean 'topdown'"),
        (["train", "--data", one, *trained], "only one image"),
        (["train", "--data", same, *trained], "label 'b' instead of 'a'"),
        (["train", "--data", TISSUE, "--set", "max_depth=-1", *trained], "max_depth must be 0 or more"),
        (["train", "--data", TISSUE, "--set", "c_t=nan", *trained], "c_t must be above 0"),
        (["train", "--data", TISSUE, "--set", "widths=abc", *trained], "widths"),
        (["train", "--data", TISSUE, "--set", "base_resolution=abc", *trained], "base_resolution"),
        (["classify", SLIDE, "--mpp", "nan"], "mpp"),
        (["classify", SLIDE, "--mpp", "-1"], "mpp"),
        (["classify", SLIDE, "--tau", "0.3", "--k", "2"], "goes with"),
        (["classify", SLIDE, "--save-trees", table], "folder"),
        (["train", "--data", TISSUE, "--out", table], "folder"),
        (["info", SLIDE, "--base", "0"], "--base"),
        (["train", "--data", table, *trained], "table.csv:2"),
        (["train", "--data", tmp_path / "nothing", *trained], "nothing"),
        (["train", "--data", TISSUE, "--regions", boxes, *trained], "boxes.csv:2"),
        (["train", "--data", TISSUE, "--regions", tmp_path / "none.csv", *trained], "no such file or folder"),
        (["train", "--data", TISSUE, "--regions", hinted, "--method", "fcn", *trained], "no policy"),
    ]
    for words, message in cases:
        done = run(*words)
        assert done.code == 2, (words, done)
        assert message in " ".join(done.err.replace("│", " ").split()), (words, done.err)
        assert done.out == ""
        assert not (tmp_path / "trained").exists()


def test_doctor_examines_the_installation_and_files(run: Run, tmp_path: Path) -> None:
    assert run("doctor").code == 0
    assert json.loads(run("doctor", "--json").out)["status"] in ("ok", "warning")
    assert run("doctor", SLIDE).code == 0
    bad = tmp_path / "bad.tif"
    tifffile.imwrite(bad, np.zeros((64, 64, 3), np.uint8), tile=(32, 32), compression="zlib")
    bad.write_bytes(bad.read_bytes()[:-20])
    assert run("doctor", bad).code == 1
