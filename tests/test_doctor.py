"""The doctor: what it says of an installation and of files, good and bad. Nothing may raise."""

import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import warnings
from collections import namedtuple
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pyrtrav import doctor
from pyrtrav.doctor import OPTIONAL, PACKAGES, Check, Report, check_file, diagnose, worst
from pyrtrav.formats import Format

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ODD = sorted((SHARED / "odd").glob("*")) if SHARED.exists() else []


def by_name(checks) -> dict[str, Check]:
    return {check.name: check for check in checks}


def write_pyramid(path: Path, *, mpp: float | None = 0.5, damage: int = 0) -> Path:
    """Write a tiled TIFF of two levels; the last ``damage`` tiles of the coarsest are overwritten."""
    pixels = np.random.default_rng(1).integers(0, 255, (300, 400, 3), np.uint8)
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    options = {"tile": (64, 64), "compression": "zlib", "photometric": "rgb", "metadata": None, **resolution}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, **options)
        writer.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        where = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with open(path, "r+b") as file:
        for offset, count in where[len(where) - damage :]:
            file.seek(offset)
            file.write(bytes(count))
    return path


class TestInstallation:
    def test_everything_is_named_and_this_one_is_fit(self):
        report = diagnose()
        found = by_name(report.checks)
        assert set(PACKAGES) <= set(found)
        assert found["numpy"].found == np.__version__
        assert found["python"].found == ".".join(map(str, sys.version_info[:3]))
        assert found["OpenSlide library"].status == "ok"
        assert int(found["decoding threads"].found) >= 1
        assert int(found["torch threads"].found) == torch.get_num_threads()
        assert found["tile cache"].found.endswith("MiB")
        assert "GiB free" in found["temporary folder"].found
        assert {format.backend for format in report.formats} == {"tiff", "slide", "omezarr", "raster"}
        assert json.loads(json.dumps(dataclasses.asdict(report)))["checks"][0]["name"] == "pyrtrav"

    def test_the_report_is_as_bad_as_its_worst_check(self):
        fine, poor, bad = (Check("a", "b", status) for status in ("ok", "warning", "problem"))
        assert Report((fine,), ()).status == "ok"
        assert Report((fine, poor, fine), ()).status == "warning"
        assert Report((poor, bad), (Format("x", "y", "z"),)).status == "problem"
        assert Report((fine,), (Format("x", "y", "z"),)).status == "warning"
        assert worst([]) == "ok"

    def test_a_package_that_is_missing(self, monkeypatch):
        version = importlib.metadata.version

        def forget(name):
            if name in ("zarr", "openslide-bin", "pyarrow"):
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(importlib.metadata, "version", forget)
        found = by_name(diagnose().checks)
        assert found["zarr"] == Check("zarr", "not installed", "problem", "pip install zarr")
        assert found["openslide-bin"].status == "ok"
        assert "pyrtrav[arrow]" in found["pyarrow"].advice

    @pytest.mark.parametrize(
        ("version", "status"),
        [
            ("3.4.1", "problem"), ("4.0.0", "problem"), ("4.0", "problem"), ("4.0.1", "ok"),
            ("4.0.1-dirty", "ok"), ("4.1.0", "ok"), ("10.0.0", "ok"),
        ],
    )  # fmt: skip
    def test_an_openslide_with_holes(self, monkeypatch, version, status):
        monkeypatch.setattr(openslide, "__library_version__", version)
        check = by_name(diagnose().checks)["OpenSlide library"]
        assert check.status == status
        if status == "problem":
            assert "CVE-2026-48977" in check.found
            assert "CVE-2026-54604" in check.found
            assert "openslide-bin>=4.0.1.2" in check.advice

    def test_no_openslide(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openslide", None)
        report = diagnose()
        check = by_name(report.checks)["OpenSlide library"]
        assert check.status == "problem"
        assert "cannot be loaded" in check.found
        assert [format.missing is not None for format in report.formats if format.backend == "slide"] == [True]

    def test_no_torch(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        found = by_name(diagnose().checks)
        assert found["device"].status == "problem"
        assert "torch cannot be imported" in found["device"].found
        assert "torch threads" not in found

    def test_a_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
        assert by_name(diagnose().checks)["device"] == Check("device", "cuda:0 GPU 0, cuda:1 GPU 1")

    def test_a_gpu_whose_driver_is_too_old(self, monkeypatch):
        def complain():
            warnings.warn("The NVIDIA driver on your system is too old", stacklevel=2)
            return False

        monkeypatch.setattr(torch.cuda, "is_available", complain)
        check = by_name(diagnose().checks)["device"]
        assert check.status == "warning"
        assert check.found == "cpu: The NVIDIA driver on your system is too old"

    def test_a_gpu_that_does_not_start(self, monkeypatch):
        def fail(number):
            raise RuntimeError("CUDA unknown error")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", fail)
        check = by_name(diagnose().checks)["device"]
        assert (check.status, check.found) == ("warning", "cpu: RuntimeError: CUDA unknown error")

    def test_a_missing_codec(self, monkeypatch):
        def refuse(*_):
            raise ImportError("imagecodecs.jpeg2k_encode is not available")

        monkeypatch.setattr(imagecodecs, "jpeg2k_encode", refuse)
        report = diagnose()
        missing = {format.name: format.missing for format in report.formats if format.missing}
        assert missing == {"TIFF, SVS: JPEG 2000": "ImportError: imagecodecs.jpeg2k_encode is not available"}
        assert report.status != "ok"

    @pytest.mark.parametrize(
        ("value", "status"),
        [("3", "ok"), ("many", "problem"), ("-1", "problem"), ("", "ok")],  # empty is unset
    )
    def test_decoding_threads(self, monkeypatch, value, status):
        monkeypatch.setenv("PYRTRAV_THREADS", value)
        check = by_name(diagnose().checks)["decoding threads"]
        assert (check.status, value in check.found) == (status, True)

    def test_a_cache_beyond_the_memory(self, monkeypatch):
        monkeypatch.setattr(doctor, "_memory_bytes", lambda: 300 << 20)
        check = by_name(diagnose().checks)["tile cache"]
        assert check.status == "warning"
        assert "of 300 MiB of memory" in check.found

    def test_a_full_disk(self, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 40, 1 << 40, 1 << 29))
        check = by_name(diagnose().checks)["temporary folder"]
        assert (check.status, "0.5 GiB free" in check.found) == ("warning", True)
        monkeypatch.undo()
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
        assert by_name(diagnose().checks)["temporary folder"].status == "problem"


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


class TestBrokenInstallations:
    """In a process of its own: the readers cannot even be imported."""

    CODE = (
        "import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from pyrtrav.doctor import check_file, diagnose\n"
        "report = diagnose()\n"
        "for check in [*report.checks, *check_file('a.tif')]: print(check.name, check.status, check.found)\n"
    )

    def test_a_library_that_is_missing(self):
        said = run_python(self.CODE.format(blocked=["torch", "openslide"]))
        assert said.count("image readers problem cannot be imported: ModuleNotFoundError") == 2
        assert "openslide" in said
        assert "temporary folder" in said

    def test_a_variable_that_is_no_number(self):
        said = run_python(self.CODE.format(blocked=["torch"]), PYRTRAV_CACHE_BYTES="lots")
        assert "image readers problem cannot be imported" in said
        assert "lots" in said

    def test_torch_is_not_imported_for_a_file(self, tmp_path):
        write_pyramid(tmp_path / "a.tif")
        code = f"import sys; from pyrtrav.doctor import check_file; check_file({str(tmp_path / 'a.tif')!r})"
        assert run_python(f"{code}; print('torch' in sys.modules)") == "False\n"


class TestFiles:
    def test_a_good_pyramid(self, tmp_path):
        checks = check_file(write_pyramid(tmp_path / "a.tif"))
        assert [check.status for check in checks] == ["ok"] * 5
        found = by_name(checks)
        assert found["backend"].found == "tiff"
        assert found["levels"].found == "2: 400 x 300, 200 x 150"
        assert found["mpp"].found == "0.5 micrometres a pixel"
        assert found["level 0"].found == "tile in the middle: read"
        assert found["level 1"].found == "whole, 12 tiles: read"

    def test_without_mpp(self, tmp_path):
        check = by_name(check_file(write_pyramid(tmp_path / "a.tif", mpp=None)))["mpp"]
        assert check.status == "warning"
        assert "--mpp" in check.advice

    def test_damaged_tiles_are_named(self, tmp_path):
        path = write_pyramid(tmp_path / "a.tif", damage=5)
        found = by_name(check_file(path))
        assert found["level 0"].status == "ok"
        check = found["level 1"]
        assert check.status == "problem"
        assert "whole, 12 tiles: 5 damaged: " in check.found
        assert "level 1, tile column 3, row 1" in check.found
        assert "and 2 more" in check.found
        assert "copy the file again" in check.advice

    def test_the_damaged_tile_in_the_middle_of_a_fine_level(self, tmp_path):
        path = write_pyramid(tmp_path / "a.tif")
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            number = page.dataoffsets[2 * 7 + 3], page.databytecounts[2 * 7 + 3]
        with open(path, "r+b") as file:
            file.seek(number[0])
            file.write(bytes(number[1]))
        check = by_name(check_file(path))["level 0"]
        assert check.status == "problem"
        assert "tile in the middle: 1 damaged" in check.found
        assert "level 0, tile column 3, row 2" in check.found

    def test_a_missing_pyramid(self, tmp_path):
        path = tmp_path / "flat.tif"
        tile = imagecodecs.zlib_encode(bytes(1024 * 1024))
        tifffile.imwrite(
            path, iter([tile] * 81), shape=(9216, 9216), dtype="u1", tile=(1024, 1024), compression="zlib",
            photometric="minisblack", metadata=None,
        )  # fmt: skip
        found = by_name(check_file(path))
        assert found["levels"].status == "warning"
        assert "no pyramid, a glance would decode 85 Mpx" in found["levels"].found
        assert "pyrtrav convert" in found["levels"].advice
        assert found["level 0"].found == "tile in the middle: read"

    def test_a_flat_photograph(self, tmp_path):
        Image.new("RGB", (300, 200), (1, 2, 3)).save(tmp_path / "a.png")
        found = by_name(check_file(tmp_path / "a.png"))
        assert found["backend"].found == "raster"
        assert worst([check.status for check in found.values()]) == "warning", "its scale is unknown"

    def test_what_cannot_be_opened(self, tmp_path):
        (tmp_path / "text.svs").write_text("no slide")
        (tmp_path / "empty.tif").touch()
        os.mkfifo(tmp_path / "pipe.tif")
        for name in ("text.svs", "empty.tif", "pipe.tif", "nowhere.tif", ".", "a\0b"):
            (check,) = check_file(f"{tmp_path}/{name}")
            assert (check.name, check.status) == ("open", "problem")

    def test_a_truncated_photograph(self, tmp_path):
        Image.effect_noise((300, 200), 90).save(tmp_path / "a.jpg")
        data = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
        checks = check_file(tmp_path / "a.jpg")
        assert "problem" in {check.status for check in checks}

    def test_an_error_that_no_reader_translated(self, tmp_path, monkeypatch):
        def fail(path):
            raise RuntimeError("deep\n  inside")

        monkeypatch.setattr(doctor, "open_pyramid", fail)
        (check,) = check_file(tmp_path / "a.tif")
        assert check.found == f"{tmp_path}/a.tif: RuntimeError: deep inside"
        assert check.advice.startswith("report it")

    @pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
    def test_odd_files_give_findings(self, path):
        checks = check_file(path)
        assert checks
        if path.name in ("unreadable.svs", "truncated_jpeg.jpg", "broken.png", "CMU-1-Saved-1_16.mrxs"):
            assert "problem" in {check.status for check in checks}

    @given(
        st.binary(max_size=300),
        st.sampled_from([b"", b"II*\0", b"MM\0*", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]),
    )
    @settings(max_examples=60, deadline=None)
    def test_any_bytes_give_findings(self, tmp_path_factory, data, magic):
        path = tmp_path_factory.getbasetemp() / "any.tif"
        path.write_bytes(magic + data)
        assert check_file(path)


def test_every_extra_is_told_of() -> None:
    """An extra of the package, but for the tests', is one that the doctor names."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(OPTIONAL.values()) == set(project["project"]["optional-dependencies"]) - {"test"}
