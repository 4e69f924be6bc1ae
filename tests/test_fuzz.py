"""Files from strangers: changed anywhere, bombs, and names that lead elsewhere."""

import json
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from benchmarks.damaged import in_child
from benchmarks.damaged_child import read_file
from benchmarks.fuzz import GOOD, fuzz, make_sources, use_model
from pyrtrav.errors import DatasetError
from pyrtrav.model_file import load_model
from pyrtrav.training.data import load_dataset
from tests.samples import TISSUE

BOMB_BYTES = 1 << 30
ALLOWED_BYTES = 300 << 20
"""Beyond what the process has when it begins."""


def test_one_change_anywhere_is_never_a_traceback_or_wrong_pixels(tmp_path: Path) -> None:
    sources = [source for source in make_sources(tmp_path / "sources") if tmp_path in source.parents]
    findings = list(fuzz(sources, 90, 0, tmp_path))
    assert [finding for finding in findings if finding.what not in GOOD] == []
    # Else the changes would be too mild, or too harsh, to find anything.
    assert {finding.what for finding in findings} == set(GOOD)


@cache
def packed_gigabyte() -> bytes:
    """Zeros, as a zlib stream."""
    packer = zlib.compressobj(9)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20)]) + packer.flush()


def tiff_bomb(path: Path) -> Path:
    """A tile of 64 x 64 px whose deflate stream holds a gigabyte."""
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), tile=(64, 64), compression="zlib", photometric="rgb")
    stream = packed_gigabyte()
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages.first.tags
        tags["TileOffsets"].overwrite([path.stat().st_size])
        tags["TileByteCounts"].overwrite([len(stream)])
    with path.open("ab") as file:
        file.write(stream)
    return path


def png_bomb(path: Path) -> Path:
    """64 x 64 px whose stream holds a gigabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    stream = packed_gigabyte()
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND", b""))
    return path


def zarr_bomb(path: Path) -> Path:
    """A chunk of 64 x 64 px whose gzip stream holds a gigabyte."""
    group: Any = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=(3, 64, 64), chunks=(3, 64, 64), dtype="u1", compressors={"id": "zlib", "level": 9})
    group.attrs["multiscales"] = [{"version": "0.4", "axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]
    (path / "0" / "0.0.0").write_bytes(packed_gigabyte())
    return path


@pytest.mark.parametrize("bomb", [tiff_bomb, png_bomb, zarr_bomb])
def test_bombs_take_no_memory(bomb: Any, tmp_path: Path) -> None:
    before = int(next(s for s in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in s).split()[1]) << 10
    state, outcome = in_child(read_file, bomb(tmp_path / "bomb"), seconds=20)
    assert state == "ok", outcome
    assert not outcome.unplanned
    assert outcome.peak_bytes < before + ALLOWED_BYTES
    assert outcome.error or all(read.error or not read.pixels.any() for read in outcome.reads)


@pytest.mark.parametrize("claim", ["shape", "offsets", "widths"])
def test_a_model_that_claims_more_than_there_is(claim: str, tmp_path: Path) -> None:
    data = Path(load_model().path).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    if claim == "shape":
        header[name]["shape"] = [2**20, 2**20]
    elif claim == "offsets":
        header[name] |= {"shape": [2**40], "data_offsets": [0, 2**42]}
    else:
        card = json.loads(header["__metadata__"]["pyrtrav"])
        card["encoder"]["options"]["widths"] = [2**20, 2**20]
        header["__metadata__"]["pyrtrav"] = json.dumps(card)
    packed = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + data[8 + length :])
    state, (what, detail, _, _) = in_child(use_model, path, seconds=20)
    assert (state, what) == ("ok", "refused"), detail


@pytest.mark.parametrize("name", ["../0/../../secret", "/etc", "0/../../secret", "\x00", "C:\\0"])
def test_zarr_levels_stay_inside(name: str, tmp_path: Path) -> None:
    for folder, value in (("secret", 7), ("image.zarr/0", 3)):
        array: Any = zarr.create_array(tmp_path / folder, shape=(3, 8, 8), chunks=(3, 8, 8), dtype="u1", zarr_format=2)
        array[...] = value
    (tmp_path / "image.zarr" / ".zgroup").write_text('{"zarr_format": 2}')
    said = {"multiscales": [{"version": "0.4", "axes": ["c", "y", "x"], "datasets": [{"path": name}]}]}
    (tmp_path / "image.zarr" / ".zattrs").write_text(json.dumps(said))
    _, outcome = in_child(read_file, tmp_path / "image.zarr")
    assert outcome.error is not None
    assert not outcome.unplanned


@pytest.mark.parametrize(
    "name", ["\x00", "a\x00.tif", "../" * 40 + "etc/passwd", "file:///etc/passwd", "x" * 5000, "~"]
)
def test_names_in_a_manifest_name_images_or_nothing(name: str, tmp_path: Path) -> None:
    folder = TISSUE / "train"
    rows = [
        f"{path},{path.parent.name}\n"
        for kind in ("clear", "lesion")
        for path in sorted((folder / kind).glob("*.tif"))[:3]
    ]
    table = tmp_path / "m.csv"
    table.write_text("path,label\n" + "".join(rows))
    assert len(load_dataset(table).examples) == 6
    table.write_text("path,label\n" + "".join([*rows, f"{name},lesion\n"]))
    try:
        dataset = load_dataset(table)
    except DatasetError as error:
        assert "m.csv:8" in str(error)
    else:  # a file that is there, but no image
        assert len(dataset.examples) == 6
        assert "passwd" in str(dataset.warnings)


def test_other_libraries_do_not_talk_to_the_user(tmp_path: Path) -> None:
    """Pillow warns of a tag that reaches beyond the end of the file."""
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint8), photometric="rgb", metadata=None, description="x" * 40)
    with tifffile.TiffFile(path) as tif:
        tag, strips = (tif.pages.first.tags[name] for name in ("ImageDescription", "StripOffsets"))
    data = bytearray(path.read_bytes())
    data[tag.offset + 4 : tag.offset + 8] = struct.pack("<I", 1 << 30)
    data[strips.offset : strips.offset + 2] = struct.pack("<H", 60000)  # our own reader leaves it to Pillow
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="Tag data larger than file"), suppress(Exception):
        Image.open(path).load()
    call = [sys.executable, "-c", "from pyrtrav.cli import main; main()", "doctor", str(path)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert "Warning" not in done.stderr
