"""CIFAR-10 and CIFAR-100: from a part of the data folder, or from the standard archives in their binary version.

`load_cifar` takes any of

    a folder of ``train-00.jxl`` ...     lossless JPEG XL, each one picture of 50 x 100 images, and ``.npy`` labels
                                         of these, or of more that would follow
    ``cifar-10-binary.tar.gz``           and ``cifar-100-binary.tar.gz``, as they are
    the folder that these unpack to

The Python version of the archives is a pickle, which can run any code when it is opened: it is refused.

Images stay bytes, on the device that trains; an encoder normalises by ``mean`` and ``std``. A batch is augmented as a
whole, as usual for CIFAR: four black pixels around it, a piece of 32 px, half of them mirrored.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pyrtrav.errors import DatasetError

SIDE = 32
PADDING = 4
SHEET = 100, 50
"""Rows and columns of images in a JPEG XL shard."""


@dataclass(frozen=True)
class Pictures:
    """Images and their labels on a device."""

    pixels: Tensor
    """(n, 3, 32, 32) uint8."""
    labels: Tensor
    """(n) int64."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def between(self, first: int, last: int) -> Pictures:
        """Return those from ``first`` to before ``last``."""
        return replace(self, pixels=self.pixels[first:last], labels=self.labels[first:last])

    def statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, of pixels in 0..1."""
        whole = self.pixels.movedim(1, 0).reshape(3, -1)
        levels = torch.arange(256, dtype=torch.float64, device=whole.device) / 255
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in whole.long()])
        share = counts.double() / whole.shape[1]
        mean = share @ levels
        return mean.tolist(), (share @ levels.square() - mean.square()).sqrt().tolist()

    def augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return the images ``index``, each moved by up to 4 px and half of them mirrored: (n, 3, 32, 32) uint8.

        Args:
            generator: of the images' device.
        """
        count, device = len(index), self.pixels.device
        corner = torch.randint(2 * PADDING + 1, (2, count, 1), generator=generator, device=device)
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        along = torch.arange(SIDE, device=device)
        rows = corner[0] + along
        columns = corner[1] + torch.where(mirrored, SIDE - 1 - along, along)
        padded = pad(self.pixels[index], (PADDING,) * 4).movedim(1, 3)
        number = torch.arange(count, device=device)[:, None, None]
        return padded[number, rows[:, :, None], columns[:, None, :]].movedim(3, 1).contiguous()


class Format(NamedTuple):
    """A standard archive, whose records are labels and 3,072 bytes: red, green, blue, each row by row."""

    train: tuple[str, ...]
    test: str
    names: str
    """File of the classes' names, a line each."""
    labels: int
    """Bytes before the pixels; the last one is the class."""


FORMATS = {
    "cifar-10": Format(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1),
    "cifar-100": Format(("train.bin",), "test.bin", "fine_label_names.txt", 2),
}

Read = Callable[[str], bytes]
"""From a file's name to what is in it."""


def load_cifar(
    source: Path, device: str | torch.device = "cpu", train_images: int | None = None
) -> tuple[Pictures, Pictures]:
    """Return training and test images.

    Args:
        source: a folder or an archive, see above; or a folder that holds ``cifar10``, as ``PYRTRAV_DATA``.
        device: where they are to be.
        train_images: that many of the first (JPEG XL takes some seconds for 5,000); None for all.

    Raises:
        DatasetError: there is none of these, a part of it is missing or damaged, it is the pickled version, or there
            are fewer training images.
    """
    if (source / "cifar10").is_dir():
        source = source / "cifar10"
    if (source / "classes.txt").is_file():
        train, test = _from_shards(source, "train", train_images), _from_shards(source, "test")
    elif source.is_dir():
        names = {path.name for path in source.iterdir()}
        train, test = _from_records(source, names, lambda name: (source / name).read_bytes())
    elif source.is_file():
        train, test = _from_archive(source)
    else:
        raise DatasetError(f"{source}: is not there; name a CIFAR archive, or a folder with one unpacked")
    if train_images is not None:
        if not 0 < train_images <= len(train):
            raise DatasetError(f"{source}: has {len(train)} training images, not {train_images}")
        train = train.between(0, train_images)
    return _on(train, device), _on(test, device)


def _on(pictures: Pictures, device: str | torch.device) -> Pictures:
    return replace(pictures, pixels=pictures.pixels.to(device), labels=pictures.labels.to(device))


def _from_shards(folder: Path, part: str, images: int | None = None) -> Pictures:
    paths = sorted(folder.glob(f"{part}-*.jxl"))
    wanted = [folder / f"{part}-{number:02}.jxl" for number in range(max(len(paths), 1))]
    if missing := [path.name for path in wanted if path not in paths]:
        raise DatasetError(f"{folder}: holds no {', '.join(missing)}; copy it again")
    needed = len(paths) if images is None else -(-max(images, 1) // (SHEET[0] * SHEET[1]))
    pixels = np.concatenate([_sheet(path) for path in paths[:needed]])
    labels_path = folder / f"{part}-labels.npy"
    try:
        labels = np.load(labels_path, allow_pickle=False)[: len(pixels)]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{labels_path}: the labels cannot be read: {error}") from error
    classes = tuple((folder / "classes.txt").read_text(encoding="utf-8").split())
    return _pictures(labels_path, pixels, labels, classes)


def _sheet(path: Path) -> np.ndarray:
    rows, columns = SHEET
    try:
        picture = imagecodecs.jpegxl_decode(path.read_bytes())
    except imagecodecs.JpegxlError as error:
        raise DatasetError(f"{path}: cannot be decoded: {error}; copy it again") from error
    if picture.shape != (rows * SIDE, columns * SIDE, 3):
        raise DatasetError(f"{path}: is a picture of {picture.shape}, not of {columns} x {rows} images of {SIDE} px")
    images = picture.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(images.reshape(rows * columns, 3, SIDE, SIDE))


def _from_archive(path: Path) -> tuple[Pictures, Pictures]:
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}

            def read(name: str) -> bytes:
                file = archive.extractfile(members[name])
                return b"" if file is None else file.read()

            return _from_records(path, set(members), read)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DatasetError(f"{path}: is no whole tar archive: {error}; fetch it again") from error


def _from_records(source: Path, names: set[str], read: Read) -> tuple[Pictures, Pictures]:
    if names & {"data_batch_1", "train"}:
        binary = "cifar-10-binary.tar.gz" if "data_batch_1" in names else "cifar-100-binary.tar.gz"
        raise DatasetError(f"{source}: is pickled, which could run any code; take the binary version, {binary}")
    for form in FORMATS.values():
        wanted = {*form.train, form.test, form.names}
        if wanted <= names:
            classes = tuple(read(form.names).decode("utf-8", "replace").split())
            train = [_records(source, name, read(name), form) for name in form.train]
            pixels, labels = (np.concatenate(each) for each in zip(*train, strict=True))
            test = _records(source, form.test, read(form.test), form)
            return _pictures(source, pixels, labels, classes), _pictures(source, *test, classes)
        if form.test in names:
            raise DatasetError(f"{source}: lacks {', '.join(sorted(wanted - names))}; fetch it again")
    raise DatasetError(f"{source}: holds neither test_batch.bin nor test.bin: no CIFAR-10 or CIFAR-100")


def _records(source: Path, name: str, data: bytes, form: Format) -> tuple[np.ndarray, np.ndarray]:
    size = form.labels + 3 * SIDE**2
    if not data or len(data) % size:
        raise DatasetError(f"{source}: {name} has {len(data)} bytes, no multiple of {size}; fetch it again")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = records[:, form.labels - 1].astype(np.int64)
    return records[:, form.labels :].reshape(-1, 3, SIDE, SIDE).copy(), labels


def _pictures(source: Path, pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Pictures:
    if len(labels) != len(pixels) or not len(labels) or not 0 <= labels.min() <= labels.max() < len(classes):
        raise DatasetError(
            f"{source}: {len(labels)} labels do not fit {len(pixels)} images of {len(classes)} classes; fetch it again"
        )
    return Pictures(torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64)), classes)
