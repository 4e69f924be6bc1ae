"""A cohort's index of thumbnails, kept up to date while images are classified."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pyrtrav.cohort.results import tree_path
from pyrtrav.errors import PyrtravError
from pyrtrav.explain.gallery import Entry, save_thumbnail, thumbnail_path, write_index
from pyrtrav.files import make_folder
from pyrtrav.pyramid import open_pyramid
from pyrtrav.pyramid.base import forget_tiles
from pyrtrav.pyramid.time_limit import TimeLimit
from pyrtrav.tree import Record

EVERY_SECONDS = 10.0
"""Between two writings of the pages."""


class Index:
    """Pages in a folder, with an entry for every record that it is given; whole at the end, however that comes."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        total: int,
        *,
        trees: str | os.PathLike[str] | None = None,
        isolate: str = "auto",
        max_seconds: float | None = None,
    ) -> None:
        """Begin an index of ``total`` images, whose thumbnails are read as ``isolate`` says.

        ``trees`` is the folder of their parse trees, where they are saved; entries lead there. An image of which no
        thumbnail can be read in ``max_seconds`` has none.

        Raises:
            ConfigError: the folder cannot be made.
        """
        self.folder, self.total, self.trees, self.isolate = make_folder(folder), total, trees, isolate
        self.max_seconds = max_seconds
        self._entries: list[Entry] = []
        self._written = 0.0

    def add(self, record: Record) -> None:
        """Add an image; its thumbnail is read, unless one of the image as it is now is there from an earlier run."""
        links = {}
        if self.trees is not None and record["status"] == "ok":
            links["tree"] = tree_path(self.trees, record)
        self._entries.append(Entry.of(record, thumbnail=self._thumbnail(record), links=links))
        if time.monotonic() > self._written + EVERY_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the pages as they are now."""
        write_index(self.folder, self._entries, total=self.total)
        self._written = time.monotonic()

    def _thumbnail(self, record: Record) -> Path | None:
        if record["status"] != "ok":
            return None
        path, fingerprint = record["input"]["path"], record["input"]["fingerprint"] or ""
        there = thumbnail_path(self.folder, path, fingerprint)
        if fingerprint and there.is_file():
            return there
        try:
            with open_pyramid(path, isolate=self.isolate, limit=TimeLimit(self.max_seconds)) as image:
                try:
                    return save_thumbnail(image, self.folder, fingerprint)
                finally:
                    forget_tiles([image])
        except PyrtravError:
            return None  # its record says all that matters

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.write()
