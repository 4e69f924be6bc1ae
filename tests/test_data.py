"""Training data: what is listed, how it is split, and what is refused with file and line."""

import hashlib
import os
import random
import shutil
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.training.data import VALIDATION_SHARE, Dataset, load_dataset, validation_units

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not beside the repository")


def write_image(path: Path, color: int | None = None) -> Path:
    """Write a small PNG whose content follows from its path, unless a colour is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    value = zlib.crc32(str(path).encode()) if color is None else color
    Image.new("RGB", (8, 8), tuple(value.to_bytes(4, "big")[1:])).save(path, "PNG")
    return path


def write_classes(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name / f"{number}.png")
    return root


def write_table(folder: Path, text: str | bytes, name: str = "labels.csv", images: int = 10) -> Path:
    """Write a table beside the images 0.png, 1.png ..."""
    folder.mkdir(exist_ok=True)
    for number in range(images):
        write_image(folder / f"{number}.png")
    table = folder / name
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return table


def rows(**labels: str) -> str:
    """A table with a row for every image: rows(cat="012", dog="34")."""
    lines = [f"{number}.png,{label}" for label, numbers in labels.items() for number in numbers]
    return "\n".join(["path,label", *lines, ""])


def places(dataset: Dataset) -> dict[str, str]:
    return {os.path.basename(example.path): example.split for example in dataset.examples}


class TestFolders:
    def test_sorted_names_are_the_classes_and_each_has_both_sides(self, tmp_path):
        dataset = load_dataset(write_classes(tmp_path, dog=5, cat=7, **{".hidden": 3}))
        assert dataset.classes == ("cat", "dog")
        assert len(dataset.examples) == 12
        assert dataset.warnings == ()
        sides = Counter((example.label, example.split) for example in dataset.examples)
        assert set(sides) == {(0, "train"), (0, "val"), (1, "train"), (1, "val")}
        for example in dataset.examples:
            assert os.path.isabs(example.path)
            assert os.path.isfile(example.path)
            assert example.source == str(tmp_path / dataset.classes[example.label])
            assert example.group is None

    def test_a_relative_folder_gives_absolute_paths(self, tmp_path, monkeypatch):
        write_classes(tmp_path / "data", a=2, b=2)
        monkeypatch.chdir(tmp_path)
        assert load_dataset("data") == load_dataset(tmp_path / "data")

    def test_images_at_any_depth_and_no_hidden_ones(self, tmp_path):
        write_classes(tmp_path, a=2, b=2)
        deep = write_image(tmp_path / "a" / "x" / "y" / "deep.png")
        write_image(tmp_path / "a" / ".cache" / "no.png")
        write_image(tmp_path / "a" / "._0.png")
        dataset = load_dataset(tmp_path)
        assert [example.path for example in dataset.examples if example.label == 0] == [
            str(tmp_path / "a" / "0.png"),
            str(tmp_path / "a" / "1.png"),
            str(deep),
        ]
        assert dataset.warnings == ()

    def test_the_order_of_the_file_system_does_not_show(self, tmp_path, monkeypatch):
        write_classes(tmp_path, a=9, b=9)
        expected = load_dataset(tmp_path)
        listdir = os.listdir
        monkeypatch.setattr(os, "listdir", lambda folder: sorted(listdir(folder), reverse=True))
        assert load_dataset(tmp_path) == expected

    def test_the_seed_decides(self, tmp_path):
        write_classes(tmp_path, a=20, b=20)
        assert load_dataset(tmp_path, seed=3) == load_dataset(tmp_path, seed=3)
        assert load_dataset(tmp_path, seed=3) != load_dataset(tmp_path, seed=4)

    def test_what_no_reader_claims_is_one_warning(self, tmp_path):
        write_classes(tmp_path, a=2, b=2)
        for number in range(7):
            (tmp_path / "b" / f"note{number}.txt").write_text("a note")
        (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        os.mkfifo(tmp_path / "a" / "pipe.png")
        (warning,) = load_dataset(tmp_path).warnings
        assert "no reader can open it: 9 (a/gone.png, a/pipe.png, b/note0.txt" in warning
        assert "note6" not in warning

    def test_a_link_to_a_folder_above_is_not_followed(self, tmp_path):
        write_classes(tmp_path, a=2, b=2)
        (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
        assert len(load_dataset(tmp_path).examples) == 4

    def test_images_outside_the_class_folders_are_named(self, tmp_path):
        write_classes(tmp_path, a=2, b=2)
        write_image(tmp_path / "loose.png")
        (tmp_path / "README.md").write_text("about these data")
        (warning,) = load_dataset(tmp_path).warnings
        assert "outside the class folders: 1 (loose.png)" in warning

    def test_given_splits(self, tmp_path):
        for split, count in {"train": 3, "val": 1, "test": 2}.items():
            write_classes(tmp_path / split, b=count, a=count)
        dataset = load_dataset(tmp_path)
        assert dataset.classes == ("a", "b")
        assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [6, 2, 4]
        assert all(example.path.startswith(str(tmp_path / example.split)) for example in dataset.examples)
        with pytest.raises(ConfigError, match="'valid'; did you mean 'val'"):
            dataset.split("valid")

    def test_without_val_a_part_of_train_becomes_it(self, tmp_path):
        write_classes(tmp_path / "train", a=6, b=6)
        write_classes(tmp_path / "test", a=2, b=2)
        dataset = load_dataset(tmp_path)
        assert "no split val; 20% of train become it" in dataset.warnings[0]
        assert {example.label for example in dataset.split("val")} == {0, 1}
        assert {os.path.dirname(example.path) for example in dataset.split("test")} == {
            str(tmp_path / "test" / "a"),
            str(tmp_path / "test" / "b"),
        }
        assert len(dataset.split("train")) + len(dataset.split("val")) == 12

    def test_a_class_without_validation_images_is_a_warning(self, tmp_path):
        write_classes(tmp_path / "train", a=2, b=1)
        write_classes(tmp_path / "val", a=2)
        (tmp_path / "val" / "b").mkdir()
        assert "no validation images of 'b'" in load_dataset(tmp_path).warnings[0]

    @pytest.mark.parametrize("split", ["val", "test"])
    def test_a_class_that_was_never_trained(self, tmp_path, split):
        write_classes(tmp_path / "train", a=2, b=2)
        write_classes(tmp_path / split, a=1, b=1, c=1)
        with pytest.raises(DatasetError, match=rf"{split}/c: class 'c' stands in {split}, but not in train"):
            load_dataset(tmp_path)

    def test_splits_beside_classes(self, tmp_path):
        write_classes(tmp_path, train=2, car=2)
        with pytest.raises(DatasetError, match=r"car: stands beside the splits \(train\); put every class"):
            load_dataset(tmp_path)

    def test_folders_that_are_no_data(self, tmp_path):
        empty, flat = tmp_path / "empty", tmp_path / "flat"
        empty.mkdir()
        write_image(flat / "a.png")
        for folder in (empty, flat):
            with pytest.raises(DatasetError, match="holds no class folders with images; put images into"):
                load_dataset(folder)
        with pytest.raises(DatasetError, match="only one class, 'a'; training needs at least two"):
            load_dataset(write_classes(tmp_path / "one", a=3))
        with pytest.raises(DatasetError, match=r"b: class 'b' has only one image; .*: add images"):
            load_dataset(write_classes(tmp_path / "few", a=3, b=1))
        write_classes(tmp_path / "hollow", a=3, b=3)
        (tmp_path / "hollow" / "c").mkdir()
        with pytest.raises(DatasetError, match="hollow/c: no image in it can be opened; add images"):
            load_dataset(tmp_path / "hollow")
        with pytest.raises(DatasetError, match="no such file or folder"):
            load_dataset(tmp_path / "nowhere")
        with pytest.raises(DatasetError, match=r"neither a folder with a folder per class nor a .csv"):
            load_dataset(flat / "a.png")

    def test_a_folder_that_may_not_be_listed(self, tmp_path, monkeypatch):
        write_classes(tmp_path, a=2, b=2)
        listdir = os.listdir

        def refuse(folder):
            if str(folder).endswith("b"):
                raise PermissionError(13, "Permission denied", folder)
            return listdir(folder)

        monkeypatch.setattr(os, "listdir", refuse)
        with pytest.raises(DatasetError, match="b: cannot be listed: Permission denied"):
            load_dataset(tmp_path)


class TestTables:
    def test_csv_as_spreadsheets_write_it(self, tmp_path):
        lines = [
            "\ufeffpath, label",
            '"0.png", cat',
            "",
            '1.png,"cat"',
            ' 2.png , "dog, small"',
            '3.png,"dog, small"',
        ]
        table = write_table(tmp_path, "\r\n".join(lines))
        dataset = load_dataset(table)
        assert dataset.classes == ("cat", "dog, small")
        assert list(places(dataset)) == ["0.png", "1.png", "2.png", "3.png"]
        assert [example.source for example in dataset.examples] == [f"{table}:{line}" for line in (2, 4, 5, 6)]
        assert dataset.warnings == ()

    def test_paths_may_be_absolute_or_lead_elsewhere(self, tmp_path):
        other = write_image(tmp_path / "other" / "x.png")
        table = write_table(tmp_path / "t", f"path,label\n{other},a\n../other/./y.png,a\n0.png,b\n1.png,b\n")
        write_image(tmp_path / "other" / "y.png")
        paths = [example.path for example in load_dataset(table).examples]
        assert paths[:2] == [str(other), str(tmp_path / "other" / "y.png")]

    def test_split_and_group(self, tmp_path):
        text = "group,label,path,split\np1,a,0.png,train\n,a,1.png,val\np1,b,2.png,train\np2,b,3.png,val\n"
        dataset = load_dataset(write_table(tmp_path, text + "p3,b,4.png,test\n"))
        assert places(dataset) == {
            "0.png": "train", "1.png": "val", "2.png": "train", "3.png": "val", "4.png": "test",
        }  # fmt: skip
        assert [example.group for example in dataset.examples] == ["p1", None, "p1", "p2", "p3"]

    def test_columns_that_are_not_used_are_named(self, tmp_path):
        text = "path,label,scanner,date\n" + "".join(f"{n}.png,{'ab'[n % 2]},x,y\n" for n in range(4))
        assert load_dataset(write_table(tmp_path, text)).warnings == (
            f"{tmp_path}/labels.csv: columns that are not used: scanner, date",
        )

    def test_rows_repeated_alike_count_once(self, tmp_path):
        dataset = load_dataset(write_table(tmp_path, rows(a="01", b="23") + "0.png,a\n./0.png,a\n"))
        assert len(dataset.examples) == 4
        assert "listed more than once, used once: 2 (0.png, 0.png)" in dataset.warnings[0]

    def test_rows_that_no_reader_claims(self, tmp_path):
        table = write_table(tmp_path, rows(a="01", b="23") + "notes.txt,a\n")
        (tmp_path / "notes.txt").write_text("a note")
        dataset = load_dataset(table)
        assert len(dataset.examples) == 4
        assert "no reader can open it: 1 (notes.txt)" in dataset.warnings[0]
        table.write_text(rows(a="01", b="23") + "notes.txt,c\n")
        with pytest.raises(DatasetError, match=r"labels.csv:6: class 'c' has no image .*notes.txt"):
            load_dataset(table)

    def test_groups_stay_on_one_side(self, tmp_path):
        lines = [f"{n}.png,{'ab'[n % 2]},p{n // 4}" for n in range(40)]
        table = write_table(tmp_path, "\n".join(["path,label,group", *lines]), images=40)
        for seed in range(5):
            dataset = load_dataset(table, seed=seed)
            sides = {(example.group, example.split) for example in dataset.examples}
            assert len(sides) == 10
            assert {(example.label, example.split) for example in dataset.examples} == {
                (0, "train"), (0, "val"), (1, "train"), (1, "val"),
            }  # fmt: skip

    def test_the_order_of_the_rows_moves_no_image(self, tmp_path):
        head, *lines = rows(a="0123456789", b=[str(n) for n in range(10, 30)]).splitlines()
        table = write_table(tmp_path, "\n".join([head, *lines]), images=30)
        expected = load_dataset(table)
        random.Random(1).shuffle(lines)
        table.write_text("\n".join([head, *lines]))
        shuffled = load_dataset(table)
        assert places(shuffled) == places(expected)
        assert shuffled.classes == expected.classes

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"labels.csv: is empty; its first line must name the columns path,label"),
            ("\n \n", r"labels.csv: is empty"),
            ("path,label\n", r"labels.csv: holds no rows below its header"),
            ("path\n0.png\n", r"labels.csv:1: no column 'label'; it has 'path'$"),
            ("file,class\n0.png,a\n", r"no column 'path' and 'label'; it has 'file', 'class'$"),
            ("path;label\n0.png;a\n", r"no column .* it has 'path;label'; separate columns by commas"),
            ("path,label,label\n0.png,a,b\n", r"labels.csv:1: the column 'label' stands twice"),
            (rows(a="01") + "2.png\n", r"labels.csv:4: 1 values where the header names 2 columns$"),
            (rows(a="01") + "2.png,b,c\n", r"labels.csv:4: 3 values .* columns; put quotes around"),
            (rows(a="01") + "2.png,\n3.png, \n", r"labels.csv:4: the label is empty \(and in 1 other rows\)"),
            (rows(a="01") + ",b\n", r"labels.csv:4: the path is empty; fill it in"),
            (rows(a="01") + '"2.png"x,b\n', r"labels.csv:4: not a line of CSV \(.*\); check its quotes"),
            (rows(a="01") + '"2.png,b\n', r"labels.csv:4: not a line of CSV"),
            ('path,label\n0.png,"a\nb"\n\n1.png\n', r"labels.csv:5: 1 values"),
            (rows(a="01").encode() + b"2.png,caf\xe9\n", r"labels.csv:4: not UTF-8 text; save the table"),
            (rows(a="01", b="23").encode("utf-16"), r"labels.csv:1: not UTF-8 text"),
            (rows(a="01") + "2\0.png,b\n", r"labels.csv:4: (the path holds a zero byte|not a line of CSV)"),
            (rows(a="01", b="2") + "nowhere.png,b\nx.png,b\n", r"csv:5: no such file: .*/nowhere.png \("),
            (rows(a="0123"), r"labels.csv: only one class, 'a'"),
            (rows(a="012", b="3"), r"labels.csv:5: class 'b' has only one image"),
            (rows(a="012", b="23"), r"labels.csv:5: .*/2.png has label 'b', but 'a' at .*labels.csv:4;"),
            ("path,label,split\n0.png,a,training\n", r"labels.csv:2: unknown split 'training'; did you mean"),
            ("path,label,split\n0.png,a,train\n1.png,b,\n", r"labels.csv:3: the split is empty; name"),
            ("path,label,split\n0.png,a,train\n0.png,a,val\n", r"labels.csv:3: .*0.png has split 'val', but"),
            ("path,label,split\n0.png,a,val\n1.png,b,val\n", r"labels.csv:2: class 'a' stands in val"),
            (
                "path,label,split\n0.png,a,train\n1.png,b,train\n2.png,c,val\n",
                r"labels.csv:4: class 'c' stands in val, but not in train",
            ),
            (
                "path,label,split,group\n0.png,a,train,p\n1.png,b,train,\n2.png,b,val,q\n3.png,a,val,p\n",
                r"labels.csv:5: group 'p' is in val, but in train at .*labels.csv:2; put all images",
            ),
            (
                "path,label,group\n0.png,a,p\n1.png,a,p\n2.png,b,q\n3.png,b,r\n",
                r"labels.csv:2: class 'a' has 2 images, but all of group 'p', which stays on one side",
            ),
            (
                # Three patients, any two of whom make up a class: one side must hold two of them.
                "path,label,group\n0.png,a,p\n1.png,a,q\n2.png,b,q\n3.png,b,r\n4.png,c,r\n5.png,c,p\n",
                r"its groups cannot be divided .* give the split yourself",
            ),
        ],
    )  # fmt: skip
    def test_refused_with_file_and_line(self, tmp_path, text, message):
        table = write_table(tmp_path, text)
        with pytest.raises(DatasetError, match=message) as caught:
            load_dataset(table)
        assert str(table) in str(caught.value) or "its groups cannot" in message

    def test_a_table_that_cannot_be_read(self, tmp_path):
        table = tmp_path / "labels.csv"
        table.mkdir()
        write_classes(table, a=2, b=2)
        assert len(load_dataset(table).examples) == 4, "a folder is a folder, whatever its name"

    def test_an_empty_split_column_is_none(self, tmp_path):
        text = "path,label,split\n" + "".join(f"{n}.png,{'ab'[n % 2]},\n" for n in range(6))
        dataset = load_dataset(write_table(tmp_path, text))
        assert dataset.warnings == ()
        assert dataset.split("val")

    def test_splits_without_val_keep_groups_together(self, tmp_path):
        lines = [f"{n}.png,{'ab'[n % 2]},{'test' if n < 4 else 'train'},p{n // 4}" for n in range(40)]
        table = write_table(tmp_path, "\n".join(["path,label,split,group", *lines]), images=40)
        dataset = load_dataset(table)
        assert {name for name, split in places(dataset).items() if split == "test"} == {
            "0.png", "1.png", "2.png", "3.png",
        }  # fmt: skip
        assert len({(example.group, example.split) for example in dataset.examples}) == 10
        assert "no split val" in dataset.warnings[0]


class TestParquet:
    def test_the_extra_is_named_where_it_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        table = write_table(tmp_path, b"PAR1", "labels.parquet")
        with pytest.raises(ConfigError, match=r"needs the extra `arrow`: pip install 'pyrtrav\[arrow\]'"):
            load_dataset(table)

    def test_equals_csv(self, tmp_path):
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        write_table(tmp_path, rows(a="01234", b="56789"))
        columns = {"path": [f"{n}.png" for n in range(10)], "label": list("aaaaabbbbb"), "weight": [1.0] * 10}
        parquet.write_table(pa.table(columns), tmp_path / "labels.parquet")
        dataset = load_dataset(tmp_path / "labels.parquet")
        assert places(dataset) == places(load_dataset(tmp_path / "labels.csv"))
        assert dataset.examples[0].source == f"{tmp_path}/labels.parquet:1"
        assert "columns that are not used: weight" in dataset.warnings[0]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"path": ["0.png", "1.png"], "label": ["a", None]}, "labels.parquet:2: the label is empty"),
            (
                {"path": ["0.png", "1.png"], "label": [1.0, float("nan")]},
                "labels.parquet:1: label is 1.0, a float",
            ),
            (
                {"path": ["0.png"], "class": ["a"]},
                "labels.parquet:1: no column 'label'; it has 'path', 'class'",
            ),
            ({"path": [], "label": []}, "holds no rows"),
        ],
    )
    def test_refused(self, tmp_path, columns, message):
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        write_table(tmp_path, "")
        parquet.write_table(pa.table(columns), tmp_path / "labels.parquet")
        with pytest.raises(DatasetError, match=message):
            load_dataset(tmp_path / "labels.parquet")

    def test_integers_are_labels_and_damage_is_named(self, tmp_path):
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = write_table(tmp_path, b"PAR1 and no more", "bad.parquet")
        with pytest.raises(DatasetError, match=r"bad.parquet: not a readable Parquet file"):
            load_dataset(table)
        columns = {"path": [f"{n}.png" for n in range(4)], "label": [3, 3, 10, 10]}
        parquet.write_table(pa.table(columns), tmp_path / "good.parquet")
        assert load_dataset(tmp_path / "good.parquet").classes == ("10", "3")


class TestContent:
    def test_one_content_under_two_labels(self, tmp_path):
        table = write_table(tmp_path, rows(a="012", b="345"))
        shutil.copyfile(tmp_path / "1.png", tmp_path / "4.png")
        with pytest.raises(DatasetError, match=r"csv:6: .*/4.png has the same content as .*/1.png \(.*:3\)"):
            load_dataset(table)

    def test_in_folders(self, tmp_path):
        write_classes(tmp_path, a=3, b=3)
        shutil.copyfile(tmp_path / "a" / "1.png", tmp_path / "b" / "7.png")
        with pytest.raises(DatasetError, match=r"b/7.png has the same content as .*a/1.png .*label 'b' inst"):
            load_dataset(tmp_path)

    def test_equal_beginnings_are_not_equal_contents(self, tmp_path):
        for number in range(4):
            pixels = np.zeros((256, 512), np.uint8)
            pixels[-1, -1] = number
            (tmp_path / "ab"[number % 2]).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / "ab"[number % 2] / f"{number}.tif", pixels)
        assert len(load_dataset(tmp_path).examples) == 4

    def test_one_content_in_two_splits_is_a_warning(self, tmp_path):
        write_classes(tmp_path / "train", a=3, b=3)
        write_classes(tmp_path / "val", a=3, b=3)
        shutil.copyfile(tmp_path / "train" / "a" / "1.png", tmp_path / "val" / "a" / "1.png")
        (warning,) = load_dataset(tmp_path).warnings
        assert "the same content in two splits" in warning
        assert "train/a/1.png (train) and" in warning

    def test_a_file_that_cannot_be_read(self, tmp_path, monkeypatch):
        table = write_table(tmp_path, rows(a="012", b="345"))

        def refuse(path):
            raise OSError(5, "Input/output error", path)

        monkeypatch.setattr(os.path, "getsize", refuse)
        with pytest.raises(DatasetError, match=r"labels.csv:2: .*/0.png cannot be read: Input/output error"):
            load_dataset(table)


def natural_place(seed: int, unit: str) -> float:
    """The rule in its own words: the first 64 bits of SHA-256 of seed and name, as a fraction of 1."""
    return int(hashlib.sha256(f"{seed}:{unit}".encode()).hexdigest()[:16], 16) / 2**64


def natural_side(seed: int, unit: str) -> bool:
    return natural_place(seed, unit) < VALIDATION_SHARE


seeds = st.integers(0, 2**32)
names = st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=30)


class TestValidationUnits:
    @given(seeds)
    @settings(max_examples=20, deadline=None)
    def test_about_a_fifth_of_each_class(self, seed):
        classes = {label: {f"{label}/{number}" for number in range(1000)} for label in "ab"}
        chosen = validation_units(classes, seed)
        for units in classes.values():
            assert 0.13 < len(units & chosen) / len(units) < 0.27

    @given(seeds, st.dictionaries(st.sampled_from("abc"), names, min_size=1))
    @settings(deadline=None)
    def test_both_sides_of_every_class(self, seed, found):
        classes = {label: {f"{label}/{name}" for name in units} for label, units in found.items()}
        chosen = validation_units(classes, seed)
        for units in classes.values():
            assert units & chosen
            assert units - chosen

    @given(seeds, st.dictionaries(st.sampled_from("abcd"), names, min_size=1))
    @settings(deadline=None)
    def test_groups_of_several_classes(self, seed, classes):
        try:
            chosen = validation_units(classes, seed)
        except DatasetError:
            # Every other class holds back one unit at most, its last: a class of more has one to give.
            assert min(map(len, classes.values())) < len(classes)
            return
        for units in classes.values():
            assert units & chosen
            assert units - chosen

    @given(seeds, names, st.text(min_size=1, max_size=8))
    @settings(deadline=None)
    def test_an_added_image_moves_no_other(self, seed, units, added):
        sides = {natural_side(seed, unit) for unit in units}
        assume(len(sides) == 2)
        before = validation_units({"a": units}, seed)
        assert before == {unit for unit in units if natural_side(seed, unit)}
        assert validation_units({"a": units | {added}}, seed) - {added} == before - {added}

    @given(seeds, st.booleans())
    @settings(max_examples=20, deadline=None)
    def test_a_class_on_one_side_gives_its_nearest(self, seed, validating):
        units = {unit for unit in map(str, range(60)) if natural_side(seed, unit) == validating}
        assume(len(units) > 1)
        nearest = (max if validating else min)(units, key=lambda unit: natural_place(seed, unit))
        chosen = validation_units({"a": units}, seed)
        assert chosen == (units - {nearest} if validating else {nearest})

    @given(seeds, names, st.text(min_size=1, max_size=8))
    @settings(deadline=None)
    def test_in_the_smallest_classes_it_moves_one_at_most(self, seed, units, added):
        before = validation_units({"a": units}, seed)
        after = validation_units({"a": units | {added}}, seed)
        assert len((before ^ after) - {added}) <= 1


def test_an_added_file_moves_no_other(tmp_path):
    write_classes(tmp_path, a=30, b=30)
    before = {example.path: example.split for example in load_dataset(tmp_path).examples}
    write_image(tmp_path / "a" / "00.png")
    after = {example.path: example.split for example in load_dataset(tmp_path).examples}
    assert before == {path: split for path, split in after.items() if path in before}


class TestImagesOfManyFiles:
    def test_a_zarr_folder_is_one_image(self, tmp_path):
        for label, number in (("a", 0), ("a", 1), ("b", 2), ("b", 3)):
            write_zarr(tmp_path / label / f"{number}.ome.zarr", number)
        dataset = load_dataset(tmp_path)
        assert [os.path.basename(example.path) for example in dataset.examples] == [
            f"{number}.ome.zarr" for number in range(4)
        ]
        assert dataset.warnings == ()

    def test_zarr_folders_of_one_content(self, tmp_path):
        for label, number in (("a", 0), ("a", 1), ("b", 2), ("b", 0)):
            write_zarr(tmp_path / label / f"{label}{number}.ome.zarr", number)
        with pytest.raises(DatasetError, match=r"b0.ome.zarr has the same content as .*a0.ome.zarr"):
            load_dataset(tmp_path)

    def test_a_mirax_slide_and_its_folder_are_one_image(self, tmp_path):
        for label, number in (("a", 0), ("a", 1), ("b", 2), ("b", 3)):
            write_mirax(tmp_path / label / f"{number}.mrxs", b"pixels of %d" % number)
        # Its data folder is listed before it, and must be no class.
        write_mirax(tmp_path / "loose.mrxs", b"more")
        dataset = load_dataset(tmp_path)
        assert list(places(dataset)) == ["0.mrxs", "1.mrxs", "2.mrxs", "3.mrxs"]
        assert dataset.classes == ("a", "b")
        assert dataset.warnings == (f"{tmp_path}: left out, as they lie outside the class folders: 1 (loose.mrxs)",)

    def test_the_content_of_a_mirax_slide_is_in_its_folder(self, tmp_path):
        for label, number in (("a", 0), ("a", 1), ("b", 2), ("b", 3)):
            write_mirax(tmp_path / label / f"{number}.mrxs", b"pixels of %d" % (number % 3))
        with pytest.raises(DatasetError, match=r"b/3.mrxs has the same content as .*a/0.mrxs"):
            load_dataset(tmp_path)

    def test_a_mirax_slide_in_a_table_may_name_its_folder(self, tmp_path):
        table = write_table(tmp_path, rows(a="01", b="23") + "slide.mrxs,a\nslide,a\n")
        write_mirax(tmp_path / "slide.mrxs", b"pixels")
        assert len(load_dataset(table).examples) == 5

    @needs_shared
    def test_a_dicom_series_is_one_image(self, tmp_path):
        series = SHARED / "slides" / "cmu-1-small-region-dicom"
        write_classes(tmp_path, a=2, b=2)
        for source in sorted(series.iterdir())[:4]:
            shutil.copyfile(source, tmp_path / "a" / source.name)
        dataset = load_dataset(tmp_path)
        assert sum(example.path.endswith(".dcm") for example in dataset.examples) == 1
        assert dataset.warnings == ()

    @needs_shared
    def test_two_files_of_a_series_with_two_labels(self, tmp_path):
        series = SHARED / "slides" / "cmu-1-small-region-dicom"
        first, second = sorted(series.iterdir())[:2]
        for source in (first, second):
            shutil.copyfile(source, tmp_path / source.name)
        table = write_table(tmp_path, rows(a="01", b="23") + f"{first.name},a\n{second.name},b\n")
        with pytest.raises(DatasetError, match=r"labels.csv:7: .* has label 'b', but 'a' at .*labels.csv:6"):
            load_dataset(table)
        table.write_text(rows(a="01", b="23") + f"{first.name},a\n{second.name},a\n")
        assert len(load_dataset(table).examples) == 5


def write_mirax(path: Path, data: bytes) -> None:
    """Write what OpenSlide takes for a MIRAX slide, until it reads it; the index is the same for all."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    path.write_bytes(b"index")
    (folder / "Slidedat.ini").write_text("[GENERAL]\nSLIDE_ID = 1\n")
    (folder / "Data0000.dat").write_bytes(data)


def write_zarr(folder: Path, value: int) -> None:
    """Write an OME-Zarr image of one level."""
    import zarr

    group = zarr.open_group(folder, mode="w", zarr_format=2)
    array = group.create_array("0", shape=(3, 32, 32), chunks=(3, 16, 16), dtype="u1")
    array[:] = np.full((3, 32, 32), value, np.uint8)
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]


@needs_shared
def test_real_scenes():
    dataset = load_dataset(SHARED / "scenes" / "labels.csv")
    assert dataset.classes == ("danger", "mandatory", "none", "prohibitory")
    assert len(dataset.examples) == 660
    assert dataset.warnings == ()
    counts = Counter(example.label for example in dataset.examples)
    assert counts == {0: 103, 1: 103, 2: 210, 3: 244}
    for label, count in counts.items():
        inside = sum(example.label == label for example in dataset.split("val"))
        assert 0.1 < inside / count < 0.3
