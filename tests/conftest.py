"""Where the real files are, and a clean cache for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyrtrav.pyramid.base import shared_cache

DATA = Path(os.environ.get("PYRTRAV_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real files; its tests are skipped, visibly, where it is missing."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}; set PYRTRAV_DATA to their folder")
    return DATA


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    """Tiles that another test decoded would make the ledger depend on the order of tests."""
    shared_cache().clear()
