"""Decoded tiles on the disk: never wrong, never too many, and used where decoding is slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pyrtrav.errors import ImageChangedError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.disk_cache import DiskCache, name_of
from pyrtrav.pyramid.tiles import Tile
from pyrtrav.training.images import OpenImages
from tests.samples import REPOSITORY, SLIDE, TISSUE
from tests.servers import file_server

WHOLE = Region(0, 0, 200, 150)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder; asked for by the environment."""
    monkeypatch.setenv("PYRTRAV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYRTRAV_DISK_CACHE_BYTES", str(64 << 20))
    return tmp_path / "cache" / "tiles"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*"))


def tile(seed: int, *, masked: bool = False, side: int = 16) -> Tile:
    random = np.random.default_rng(seed)
    valid = random.random((side, side - 3)) < 0.5 if masked else None
    return Tile(random.integers(0, 256, (side, side - 3, 3), np.uint8), valid)


def equal(one: Tile | None, other: Tile) -> bool:
    assert one is not None
    if (one.valid is None) != (other.valid is None):
        return False
    return np.array_equal(one.pixels, other.pixels) and (
        one.valid is None or other.valid is None or np.array_equal(one.valid, other.valid)
    )


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (150, 200, 3), np.uint8)


def png(path: Path, seed: int = 0) -> Path:
    alpha = np.full((150, 200, 1), 255, np.uint8)
    alpha[:40] = 0
    Image.fromarray(np.concatenate([pixels(seed), alpha], axis=2)).save(path)
    return path


def jpeg_2000(path: Path) -> Path:
    tifffile.imwrite(path, pixels(), tile=(64, 64), compression="jpeg2000", photometric="rgb")
    return path


# A cache as such.


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_kept_comes_back(tmp_path: Path, masked: bool) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    assert cache.get(name_of("a")) is None
    cache.put(name_of("a"), tile(0, masked=masked))
    found = DiskCache(tmp_path, 1 << 20).get(name_of("a"))
    assert equal(found, tile(0, masked=masked))
    assert found is not None
    assert found.pixels.flags.writeable, "compiled loops are made for arrays that can be written"
    assert name_of("a") in cache
    assert name_of("b") not in cache


def test_names_tell_apart_what_differs() -> None:
    ways = [("p", (1, 2), key, shrink, rule) for key in ((0, 1, 1), (0, 11, 1)) for shrink in (1, 2) for rule in "ab"]
    assert len({name_of(*way) for way in ways}) == len(ways)


@pytest.mark.parametrize("masked", [False, True])
def test_a_flipped_bit_is_no_tile(tmp_path: Path, masked: bool) -> None:
    """Whichever of all of them."""
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put(name_of("a"), tile(1, masked=masked, side=4))
    (path,) = files(tmp_path)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert cache.get(name_of("a")) is None
        assert not path.exists()


@pytest.mark.parametrize("length", [0, 5, 24, -1])
def test_a_torn_file_is_no_tile(tmp_path: Path, length: int) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put(name_of("a"), tile(0))
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:length])
    assert cache.get(name_of("a")) is None
    cache.put(name_of("a"), tile(0))
    assert equal(cache.get(name_of("a")), tile(0))


def test_a_tile_under_another_s_name_is_no_tile(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 1 << 20)
    cache.put(name_of("a"), tile(0))
    cache.put(name_of("b"), tile(1))
    cache._file(name_of("a")).write_bytes(cache._file(name_of("b")).read_bytes())
    assert cache.get(name_of("a")) is None
    assert equal(cache.get(name_of("b")), tile(1))


def test_the_bound_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    bound = 100_000
    cache = DiskCache(tmp_path, bound)
    for number in range(400):
        cache.put(name_of(number), tile(number))
        assert cache.get(name_of(0)) is not None, "it is used all the time"
        if number % 20 == 0:
            assert sum(path.stat().st_size for path in files(tmp_path)) <= bound
    kept = [number for number in range(400) if name_of(number) in cache]
    assert kept[0] == 0
    assert kept[-1] == 399
    assert 80 < len(kept) < 160
    cache.put(name_of("large"), tile(0, side=128))
    assert name_of("large") not in cache


WRITER = """
import sys
from pathlib import Path
import numpy as np
from pyrtrav.pyramid.disk_cache import DiskCache, name_of
from pyrtrav.pyramid.tiles import Tile
cache, first, last = DiskCache(Path(sys.argv[1]), int(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
for number in range(first, last):
    cache.put(name_of(number), Tile(np.full((100, 100, 3), number % 256, np.uint8)))
"""


def writer(folder: Path, bound: int, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(bound), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_all_true(folder: Path, numbers: range) -> int:
    """Every tile that is there is the right one; returns how many."""
    cache = DiskCache(folder, 1 << 30)
    found = {number: cache.get(name_of(number)) for number in numbers}
    there = {number: kept for number, kept in found.items() if kept is not None}
    assert all((kept.pixels == number % 256).all() for number, kept in there.items())
    return len(there)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    bound = 3_000_000
    running = [writer(tmp_path, bound, first, first + 300) for first in (0, 150, 300)]
    for process in running:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    assert assert_all_true(tmp_path, range(600)) > 50
    assert sum(path.stat().st_size for path in files(tmp_path)) <= bound * (1 + 3 / 16)


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Whole tiles or none; what was half-written goes once it is old."""
    for round_ in range(3):
        process = writer(tmp_path, 1 << 30, 0, 1 << 30)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            deadline = time.monotonic() + 30
            while not files(tmp_path) and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.03 * round_)
            process.send_signal(signal.SIGKILL)
    assert assert_all_true(tmp_path, range(5000)) > 0
    half = tmp_path / "ab" / ".abcdef.1-1"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    DiskCache(tmp_path, 1 << 30).put(name_of("next"), tile(0))
    assert half.exists(), "it may be being written"
    os.utime(half, (1, 1))
    DiskCache(tmp_path, 1 << 30).put(name_of("later"), tile(0))
    assert not half.exists()


def test_a_folder_that_cannot_be_used_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = DiskCache(tmp_path / "file" / "tiles", 1 << 20)
    for number in range(3):
        cache.put(name_of(number), tile(0))
        assert cache.get(name_of(number)) is None
    assert len(caplog.records) == 1
    assert "tiles are not kept on the disk any more" in caplog.text


# Another user's: reads from the folder as one who may write nothing there, and says what was found.
READER = """
import os, sys
from pathlib import Path
from pyrtrav.pyramid.disk_cache import DiskCache, name_of
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
folder = Path(sys.argv[1])
try:
    os.utime(next(folder.glob("??/*")))
    print("may write")
except PermissionError:
    print(DiskCache(folder, 1 << 20).get(name_of(0)) is not None)
"""


def test_tiles_of_another_user_are_read() -> None:
    """Who may not mark a tile as used may still use it."""
    if os.geteuid() != 0:
        pytest.skip("needs two users: only root can become another")
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to others
        DiskCache(Path(root) / "tiles", 1 << 20).put(name_of(0), tile(0))
        for place in (Path(root), *Path(root).rglob("*")):
            place.chmod(0o755 if place.is_dir() else 0o644)
        done = subprocess.run(
            [sys.executable, "-c", READER, str(Path(root) / "tiles")], capture_output=True, text=True, cwd=REPOSITORY
        )
    if "ModuleNotFoundError" in done.stderr or "PermissionError" in done.stderr:
        pytest.skip("another user cannot read this installation")
    assert done.stdout.split() == ["True"], done.stderr


# Reading through it.


def whole(pyramid: Pyramid) -> tuple[np.ndarray, np.ndarray]:
    found = pyramid.read(WHOLE, (100, 75), mask=True)
    assert found.valid is not None
    return found.pixels, found.valid


@pytest.mark.parametrize("make", [png, jpeg_2000], ids=lambda make: make.__name__)
def test_a_second_reader_decodes_nothing(folder: Path, tmp_path: Path, make: object) -> None:
    path = make(tmp_path / "image.png" if make is png else tmp_path / "image.tif")  # type: ignore[operator]
    with open_pyramid(path) as pyramid:
        expected = whole(pyramid)
        assert pyramid.cost.tiles_decoded > 0
    assert files(folder)
    shared_cache().clear()
    with open_pyramid(path) as pyramid:
        for one, other in zip(whole(pyramid), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert pyramid.cost.tiles_decoded == 0
        assert pyramid.cost.tiles_distinct > 0
    # Another rule makes other pixels.
    shared_cache().clear()
    with open_pyramid(path, channels=1) as pyramid:
        assert pyramid.read(WHOLE, 16).pixels.shape == (16, 16, 1)
        assert pyramid.cost.tiles_decoded > 0


def test_openslide_s_tiles_are_kept(folder: Path, data: Path) -> None:
    path = data / "slides" / "cmu-1-small-region-dicom" / "level-3-frames-0-1.dcm"
    patches = []
    for decoded in (True, False):
        shared_cache().clear()
        with open_pyramid(path) as pyramid:
            patches.append(pyramid.read(pyramid.bounds, 32).pixels)
            assert (pyramid.cost.tiles_decoded > 0) == decoded
    np.testing.assert_array_equal(*patches)


def test_tiles_in_memory_outlive_their_images() -> None:
    """From epoch to epoch, however many images are closed in between."""
    paths = [str(path) for path in sorted((TISSUE / "train").glob("*/*.tif"))[:4]]
    images, decoded = OpenImages(("a", "b"), 64, limit=1), []
    for _ in range(2):
        decoded.append(0)
        for path in paths:
            (pyramid,), _ = images.open_all([path])
            assert pyramid is not None
            pyramid.read(pyramid.bounds, 64)
            decoded[-1] += pyramid.cost.tiles_decoded
    images.close()
    assert decoded[0] > decoded[1] == 0


def test_what_is_quick_to_decode_is_not_kept(folder: Path) -> None:
    with open_pyramid(SLIDE) as pyramid:
        pyramid.read(pyramid.bounds, 64)
        assert pyramid.cost.tiles_decoded > 0
    assert not folder.exists()


def test_none_is_kept_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRTRAV_CACHE_DIR", str(tmp_path / "cache"))
    with open_pyramid(png(tmp_path / "image.png")) as pyramid:
        pyramid.read(WHOLE, 64)
    assert not (tmp_path / "cache").exists()


def test_a_changed_image_finds_no_old_tiles(folder: Path, tmp_path: Path) -> None:
    path = png(tmp_path / "image.png", seed=0)
    with open_pyramid(path) as pyramid:
        before = pyramid.read(WHOLE, (200, 150)).pixels
        png(path, seed=1)
        shared_cache().clear()
        with pytest.raises(ImageChangedError):
            pyramid.read(WHOLE, 64)
    with open_pyramid(path) as pyramid:
        after = pyramid.read(WHOLE, (200, 150)).pixels
        assert pyramid.cost.tiles_decoded == 1
    np.testing.assert_array_equal(after[40:], pixels(1)[40:])
    assert (before[40:] != after[40:]).any()


def test_damaged_tiles_are_decoded_again(folder: Path, tmp_path: Path) -> None:
    path = jpeg_2000(tmp_path / "image.tif")
    with open_pyramid(path) as pyramid:
        expected = pyramid.read(WHOLE, 50).pixels
    for file in files(folder)[::2]:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    shared_cache().clear()
    with open_pyramid(path) as pyramid:
        np.testing.assert_array_equal(pyramid.read(WHOLE, 50).pixels, expected)
        assert 0 < pyramid.cost.tiles_decoded < pyramid.cost.tiles_distinct


@pytest.mark.parametrize("said", ["etags", "dates", "nothing"])
def test_a_server_s_tiles_are_fetched_once(folder: Path, tmp_path: Path, said: str) -> None:
    """Unless it says nothing that would tell the file from a later one of the same size."""
    pytest.importorskip("obstore", reason="needs the extra `remote`")
    (tmp_path / "served").mkdir()
    padding = [(65000, "B", 70_000, bytes(70_000), True)]  # keeps the tiles out of what opening reads
    options = {"tile": (64, 64), "compression": "jpeg", "photometric": "rgb", "extratags": padding}
    tifffile.imwrite(tmp_path / "served" / "image.tif", pixels(), **options)
    with file_server(tmp_path / "served") as server:
        server.has_etags, server.has_dates = said == "etags", said != "nothing"
        requests, patches = [], []
        for _ in range(2):
            shared_cache().clear()
            with open_pyramid(f"{server.url}/image.tif") as pyramid:
                opened = pyramid.cost.requests or 0
                patches.append(pyramid.read(WHOLE, 50).pixels)
                requests.append((pyramid.cost.requests or 0) - opened)
    assert requests[0] > 0
    assert requests[1] == (requests[0] if said == "nothing" else 0)
    np.testing.assert_array_equal(*patches)
