"""Which backend gets a file, and what is said of files that none can read."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pyrtrav.errors import ConfigError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import BACKENDS, open_pyramid
from pyrtrav.pyramid.inspect import claims, companions, fingerprint
from tests.contracts.pyramid import picture


def tiff(path: Path) -> Path:
    tifffile.imwrite(path, picture(64, 64), photometric="rgb", tile=(32, 32), metadata=None)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.svs", "a", "ünï çødé 漢.jpg"])
def test_content_decides_not_the_name(name: str, tmp_path: Path) -> None:
    with open_pyramid(tiff(tmp_path / name)) as pyramid:
        assert pyramid.backend == "tiff"
    Image.fromarray(picture(9, 9)).save(tmp_path / name, "PNG")
    with open_pyramid(str(tmp_path / name)) as pyramid:
        assert pyramid.backend == "raster"
    link = tmp_path / "link.xyz"
    link.symlink_to(name)
    with open_pyramid(link) as pyramid:
        assert pyramid.backend == "raster"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_can_be_forced(backend: str, tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif")
    if backend in ("tiff", "slide"):
        with open_pyramid(path, backend=backend) as pyramid:
            assert pyramid.backend == backend
            assert pyramid.read(Region(0, 0, 9, 9), 9).pixels.shape == (9, 9, 3)
    else:
        with pytest.raises(UnsupportedFormatError, match=f"no reader can open it\n  {backend}: "):
            open_pyramid(path, backend=backend)


def test_unknown_backends_are_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'tif'; did you mean 'tiff'"):
        open_pyramid(tiff(tmp_path / "a.tif"), backend="tif")
    with pytest.raises(ConfigError, match="known: omezarr, raster, slide, tiff"):
        open_pyramid(tmp_path / "missing", backend="qqq")


def test_what_is_no_file_of_an_image(tmp_path: Path) -> None:
    empty, text, noise = tmp_path / "a.svs", tmp_path / "b.svs", tmp_path / "c.svs"
    empty.write_bytes(b"")
    text.write_text("hello, this is not a slide\n" * 100)
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    os.mkfifo(tmp_path / "pipe.svs")
    (tmp_path / "dangling.svs").symlink_to("nowhere")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    (tmp_path / "folder.svs").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.relpath(tmp_path / "socket.svs"))
    cases = [
        (empty, PyramidError, r"the file is empty \(0 bytes\)"),
        (text, UnsupportedFormatError, "its content is text, not an image, whatever its name says"),
        (noise, UnsupportedFormatError, "no reader can open it\n  raster: Pillow does not know this format"),
        (tmp_path / "pipe.svs", PyramidError, "is a pipe, socket or device"),
        (tmp_path / "socket.svs", PyramidError, "is a pipe, socket or device"),
        (Path("/dev/zero"), PyramidError, "is a pipe, socket or device"),
        (tmp_path / "dangling.svs", PyramidError, "no such file"),
        (tmp_path / "missing.svs", PyramidError, "no such file"),
        (tmp_path / "loop.svs", PyramidError, "Too many levels of symbolic links"),
        (tmp_path / "folder.svs", UnsupportedFormatError, "is a folder without zarr metadata"),
        (text / "below.svs", PyramidError, "Not a directory"),
    ]
    for path, kind, said in cases:
        with pytest.raises(kind, match=said) as caught:
            open_pyramid(path)
        assert str(caught.value).startswith(str(path)), "a message begins with the path"
        assert not claims(path) or path in (noise,)
    listening.close()
    with pytest.raises(PyramidError, match="null byte"):
        open_pyramid("a\0b.svs")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif")
    path.chmod(0)
    code = f"""
import os
from pyrtrav.errors import PyramidError
from pyrtrav.pyramid import open_pyramid
if os.getuid() == 0:
    os.chmod({str(tmp_path)!r}, 0o755)
    os.setuid(65534)
try:
    open_pyramid({str(path)!r})
except PyramidError as error:
    print(error)
"""
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"{path}: permission denied; make it readable for this user", done.stderr


def test_a_mirax_file_without_its_folder(data: Path, tmp_path: Path) -> None:
    """The file itself is a JPEG preview, which must not be classified as the slide."""
    path = tmp_path / "a.mrxs"
    shutil.copy(data / "odd" / "CMU-1-Saved-1_16.mrxs", path)
    with pytest.raises(UnsupportedFormatError, match="the folder 'a' with the slide's data is missing"):
        open_pyramid(path)
    assert not claims(path)
    assert companions(path) == set()
    (tmp_path / "a").mkdir()
    with pytest.raises(UnsupportedFormatError, match="the folder 'a' with the slide's data is damaged"):
        open_pyramid(path)
    assert companions(path) == {str(tmp_path / "a")}
    before = fingerprint(path)
    (tmp_path / "a" / "Data0000.dat").write_bytes(b"pixels")
    assert fingerprint(path) != before, "its folder counts"


def test_claims_of_names_and_folders(data: Path, tmp_path: Path) -> None:
    for path in sorted((data / "slides").iterdir()):
        assert claims(path) == (path.name != "cmu-1-small-region-dicom"), path.name
    for name in ("labels.csv", "boxes.csv"):
        assert not claims(data / "scenes" / name)
    assert not claims(data / "odd" / "broken.png")
    assert claims(data / "odd" / "truncated_jpeg.jpg"), "damage is told when it is opened"
    assert not claims(tmp_path)


def test_companions_are_spelled_as_the_path_is(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data / "slides" / "cmu-1-small-region-dicom"
    monkeypatch.chdir(folder)
    found = companions("level-3-frames-0-1.dcm")
    assert len(found) == 11
    assert "level-0-frames-0-30.dcm" in found
    assert companions(data / "odd" / "sm_image.dcm") == set()
    assert companions(data / "slides" / "boxes.tiff") == set()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300), st.integers(0, 10**6), st.integers(0, 255))
def test_fingerprints_follow_content_size_and_time(tmp_path: Path, end: bytes, at: int, byte: int) -> None:
    path = tmp_path / "a"
    content = bytearray(200_000) + end
    path.write_bytes(content)
    os.utime(path, ns=(0, 10**18))
    first = fingerprint(path)
    assert len(first) == 64
    moved = tmp_path / "b"
    shutil.copy2(path, moved)
    assert fingerprint(moved) == first, "the name does not count"
    changed = bytearray(content)
    changed[at % len(content)] = byte
    path.write_bytes(changed)
    os.utime(path, ns=(0, 10**18))
    place = at % len(content)
    seen = place < 65_536 or place >= len(content) - 65_536
    assert (fingerprint(path) != first) == (seen and changed != content)
    path.write_bytes(content + b"x")
    os.utime(path, ns=(0, 10**18))
    assert fingerprint(path) != first
    os.utime(moved, ns=(0, 10**18 + 1))
    assert fingerprint(moved) != first


def test_fingerprint_of_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PyramidError, match="No such file"):
        fingerprint(tmp_path / "missing")


def test_reading_needs_no_torch_and_no_zarr() -> None:
    code = "import sys, pyrtrav.pyramid, pyrtrav.pyramid.inspect; print(*({'torch', 'zarr'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
