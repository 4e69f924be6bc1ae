"""CIFAR's images: the real files, archives in the standard form, and what augmentation promises."""

import io
import tarfile
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch

from benchmarks.cifar_images import FORMATS, Pictures, load_cifar
from benchmarks.mnist_images import data_folder
from pyrtrav.errors import DatasetError

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

real = pytest.mark.skipif(not (data_folder() / "cifar10").is_dir(), reason="the part of CIFAR-10 is not there")


@pytest.fixture(scope="module")
def part() -> tuple[Pictures, Pictures]:
    return load_cifar(data_folder(), train_images=5_000)


@real
def test_the_real_files_are_those_of_cifar_10(part: tuple[Pictures, Pictures]) -> None:
    train, test = part
    assert train.pixels.shape == (5_000, 3, 32, 32)
    assert test.pixels.shape == (5_000, 3, 32, 32)
    assert train.classes == TEN
    assert train.labels[:10].tolist() == [1, 5, 9, 4, 7, 3, 6, 2, 8, 6]
    assert test.labels[:10].tolist() == [8, 1, 8, 3, 3, 8, 6, 2, 3, 5]
    for pictures in part:
        assert torch.bincount(pictures.labels).tolist() == [500] * 10


@real
def test_the_real_files_have_the_published_statistics(part: tuple[Pictures, Pictures]) -> None:
    """Those of all 50,000; the first 5,000 differ a little."""
    mean, std = part[0].statistics()
    assert mean == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=5e-3)
    assert std == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=5e-3)
    plain = part[0].pixels.double().div(255)
    assert mean == pytest.approx(plain.mean((0, 2, 3)).tolist(), abs=1e-9)
    assert std == pytest.approx(plain.std((0, 2, 3), correction=0).tolist(), abs=1e-9)


@real
def test_the_pictures_are_cut_where_they_meet(part: tuple[Pictures, Pictures]) -> None:
    """A wrong cut puts edges into the middle of images: there they are as smooth as anywhere else."""
    pixels = part[1].pixels.float()
    across = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((0, 1, 2))
    down = (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().mean((0, 1, 3))
    for steps in (across, down):
        assert steps.max() < 1.5 * steps.median()


def contents(kind: str, classes: int, images: int = 3) -> dict[str, bytes]:
    """Files of an archive; image number i of a file has its red, green and blue filled by rows, columns and i."""
    form = FORMATS[kind]
    rows, columns = np.mgrid[:32, :32].astype(np.uint8)
    found = {form.names: "\n".join(f"name{i}" for i in range(classes)).encode() + b"\n\n"}
    for number, name in enumerate((*form.train, form.test)):
        data = b""
        for image in range(images):
            labels = [7, (10 * number + image) % classes] if form.labels == 2 else [(number + image) % classes]
            blue = np.full((32, 32), 10 * number + image, np.uint8)
            data += bytes(labels) + rows.tobytes() + columns.tobytes() + blue.tobytes()
        found[name] = data
    return found


def packed(path: Path, files: dict[str, bytes], folder: str = "cifar") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize(("kind", "classes", "batches"), [("cifar-10", 10, 5), ("cifar-100", 100, 1)])
def test_standard_archives(tmp_path: Path, kind: str, classes: int, batches: int) -> None:
    files = contents(kind, classes)
    train, test = load_cifar(packed(tmp_path / f"{kind}-binary.tar.gz", files))
    assert len(train) == 3 * batches
    assert len(test) == 3
    assert train.classes == tuple(f"name{i}" for i in range(classes))
    step = 10 if classes == 100 else 1
    assert train.labels.tolist() == [step * batch + image for batch in range(batches) for image in range(3)]
    assert test.labels.tolist() == [step * batches + image for image in range(3)]
    red, green, blue = train.pixels[1]
    assert torch.equal(red[:, 0], torch.arange(32, dtype=torch.uint8))
    assert torch.equal(green[0], torch.arange(32, dtype=torch.uint8))
    assert (red == red[:, :1]).all()
    assert (green == green[:1]).all()
    assert (blue == 1).all()

    folder = tmp_path / "unpacked"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    again, _ = load_cifar(folder)
    assert torch.equal(again.pixels, train.pixels)


class TestWhatIsRefused:
    @pytest.mark.parametrize(("name", "binary"), [("data_batch_1", "cifar-10-"), ("train", "cifar-100-")])
    def test_pickles(self, tmp_path: Path, name: str, binary: str) -> None:
        path = packed(tmp_path / "cifar-python.tar.gz", {name: b"\x80\x02."})
        with pytest.raises(DatasetError, match=f"pickled.* take the binary version, {binary}binary.tar.gz"):
            load_cifar(path)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        files = contents("cifar-10", 10)
        del files["data_batch_3.bin"]
        with pytest.raises(DatasetError, match=r"lacks data_batch_3\.bin"):
            load_cifar(packed(tmp_path / "a.tar.gz", files))

    def test_a_torn_file(self, tmp_path: Path) -> None:
        files = contents("cifar-10", 10)
        files["test_batch.bin"] = files["test_batch.bin"][:-1]
        with pytest.raises(DatasetError, match=r"test_batch\.bin has 9218 bytes, no multiple of 3073"):
            load_cifar(packed(tmp_path / "a.tar.gz", files))

    def test_a_class_without_a_name(self, tmp_path: Path) -> None:
        files = contents("cifar-10", 10) | {"batches.meta.txt": b"airplane\n"}
        with pytest.raises(DatasetError, match="labels do not fit 15 images of 1 classes"):
            load_cifar(packed(tmp_path / "a.tar.gz", files))

    def test_a_torn_archive(self, tmp_path: Path) -> None:
        path = packed(tmp_path / "a.tar.gz", contents("cifar-10", 10))
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(DatasetError, match="no whole tar archive"):
            load_cifar(path)

    def test_more_images_than_there_are(self, tmp_path: Path) -> None:
        path = packed(tmp_path / "a.tar.gz", contents("cifar-10", 10))
        assert len(load_cifar(path, train_images=7)[0]) == 7
        with pytest.raises(DatasetError, match="has 15 training images, not 16"):
            load_cifar(path, train_images=16)

    def test_a_missing_sheet_of_images(self, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_text("a b")
        sheet = np.zeros((100 * 32, 50 * 32, 3), np.uint8)
        for name in ("train-00.jxl", "train-02.jxl", "test-00.jxl"):
            (tmp_path / name).write_bytes(imagecodecs.jpegxl_encode(sheet, lossless=True))
        for part in ("train", "test"):
            np.save(tmp_path / f"{part}-labels.npy", np.arange(50_000) % 2)
        with pytest.raises(DatasetError, match=r"holds no train-01\.jxl"):
            load_cifar(tmp_path)
        (tmp_path / "train-02.jxl").unlink()
        train, test = load_cifar(tmp_path)  # there may be labels of more
        assert (len(train), len(test)) == (5000, 5000)

    def test_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="no CIFAR-10 or CIFAR-100"):
            load_cifar(tmp_path)
        with pytest.raises(DatasetError, match="is not there"):
            load_cifar(tmp_path / "nothing")


def test_augmented_images_are_pieces_of_the_padded_ones_half_of_them_mirrored() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    pictures = Pictures(pixels, torch.arange(4), TEN)
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    index = torch.arange(4).repeat(100)
    found = pictures.augmented(index, torch.Generator().manual_seed(1))
    assert found.dtype == torch.uint8
    places = {
        (x, y, mirrored): (padded.flip(3) if mirrored else padded)[:, :, y : y + 32, x : x + 32]
        for x in range(9)
        for y in range(9)
        for mirrored in (False, True)
    }
    seen = []
    for image, number in zip(found, index.tolist(), strict=True):
        (place,) = [place for place, pieces in places.items() if torch.equal(pieces[number], image)]
        seen.append(place)
    assert {x for x, _, _ in seen} == {y for _, y, _ in seen} == set(range(9))
    assert 0.4 < np.mean([mirrored for _, _, mirrored in seen]) < 0.6
    assert torch.equal(found, pictures.augmented(index, torch.Generator().manual_seed(1)))
    assert not torch.equal(found, pictures.augmented(index, torch.Generator().manual_seed(2)))
