"""Many images: what to classify, results appended as they come, one failure never the end of a run."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyrtrav.errors import ConfigError
from pyrtrav.files import append_line, make_folder, written_whole
from pyrtrav.predict import Predictor
from pyrtrav.pyramid.inspect import claims
from pyrtrav.pyramid.source import full_name, short_name
from pyrtrav.selection import Settings
from pyrtrav.training.listing import walk
from pyrtrav.tree import RESULT_SCHEMA, Record, check

IMAGES_AT_ONCE = 8
"""Images whose fixations share the encoder's batches."""

FORMATS = (".jsonl", ".csv", ".parquet")


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> tuple[list[str], list[str]]:
    """Return the images that the inputs name, and the files in their folders that are none.

    Files named are taken as they are; folders are searched, sorted, hidden entries skipped.

    Raises:
        ConfigError: a folder holds no image.
        DatasetError: a folder cannot be listed.
    """
    found: list[str] = []
    others: list[str] = []
    for item in inputs:
        path = os.fspath(item)
        if os.path.isdir(path) and not claims(path):
            listings = list(walk(path))
            below = [image for listing in listings for image in listing.images]
            if not below:
                raise ConfigError(f"{path}: the folder holds no image that can be opened")
            found += sorted(below, key=Path)
            others += sorted((other for listing in listings for other in listing.others), key=Path)
        else:
            found.append(path)
    return list(dict.fromkeys(found)), others


def resume_key(record: Record) -> str:
    """Two runs of the same image, as it is now, with the same settings and model have the same key."""
    parts = [record["input"]["path"], record["input"]["fingerprint"], record["settings"], record["model"]["sha256"]]
    return json.dumps(parts, sort_keys=True)


class ResultFile:
    """Records by line as they come; CSV and Parquet are made from the lines at the end.

    The lines of ``results.csv`` are kept in ``results.csv.jsonl``, from which a run is resumed.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise ConfigError(f"{path}: results are written as {', '.join(FORMATS)}")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{path}: its folder does not exist; make it first")
        if self.path.is_dir():
            raise ConfigError(f"{path}: is a folder; name a file in it")
        if self.path.suffix == ".parquet":
            _pyarrow()
        self.lines = self.path if self.path.suffix == ".jsonl" else self.path.with_name(self.path.name + ".jsonl")
        self.done: dict[str, Record] = {}
        if resume and self.lines.exists():
            self._keep_whole_lines()
        elif self.path.exists() or self.lines.exists():
            raise ConfigError(f"{path}: exists already; add to it with --resume, or choose another --out")

    def _keep_whole_lines(self) -> None:
        """Read what is there, and rewrite it without a torn last line and without failures, which are tried again."""
        *whole, torn = self.lines.read_bytes().split(b"\n")
        for number, line in enumerate(whole, 1):
            try:
                record = json.loads(line)
                check(record, RESULT_SCHEMA, str(self.lines))
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{self.lines}:{number}: is no result of pyrtrav; choose another --out") from error
            if record["status"] == "ok":
                self.done[resume_key(record)] = record
        if torn and not torn.startswith(b"{"):
            raise ConfigError(f"{self.lines}: is no result file of pyrtrav; choose another --out")
        with written_whole(self.lines) as beside:
            beside.write_text("".join(json.dumps(record) + "\n" for record in self.done.values()), "ascii")

    def add(self, record: Record) -> None:
        append_line(self.lines, json.dumps(record))

    def finish(self) -> None:
        """Make the table that was asked for."""
        if self.path.suffix == ".jsonl":
            return
        records = [json.loads(line) for line in self.lines.read_text("ascii").split("\n") if line]
        rows = [flatten(record) for record in records]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with written_whole(self.path) as beside:
            if self.path.suffix == ".csv":
                with beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                    writer = csv.DictWriter(file, columns)
                    writer.writeheader()
                    writer.writerows(rows)
            else:
                table = _pyarrow().table({name: [row.get(name) for row in rows] for name in columns})
                _pyarrow().parquet.write_table(table, beside)


def flatten(record: Record, prefix: str = "") -> dict[str, Any]:
    """Return the record as one row: nested names joined by dots, lists as JSON."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            row |= flatten(value, f"{prefix}{name}.")
        else:
            row[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return row


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs the extra `arrow`: pip install 'pyrtrav[arrow]'") from error
    return pyarrow


def tree_path(folder: str | os.PathLike[str], image: str) -> Path:
    """Where the tree of an image is saved: its name, and enough of its path's hash to keep equal names apart."""
    mark = hashlib.sha256(os.fsencode(full_name(image))).hexdigest()[:8]
    return Path(folder) / f"{short_name(full_name(image))}.{mark}.tree.json"


def classify(
    predictor: Predictor,
    images: Sequence[str],
    settings: Settings,
    *,
    mpp: float | None = None,
    out: ResultFile | None = None,
    save_trees: str | os.PathLike[str] | None = None,
) -> Iterator[Record]:
    """Yield a record for every image, failed ones too, in order; what ``out`` holds already is not done again."""
    if save_trees is not None:
        make_folder(save_trees)
    for start in range(0, len(images), IMAGES_AT_ONCE):
        batch = images[start : start + IMAGES_AT_ONCE]
        known = {image: _known(predictor, image, settings, mpp, out, save_trees) for image in batch}
        waiting = [image for image in batch if known[image] is None]
        outcomes = predictor.predict(waiting, settings, mpp=mpp, contributions=save_trees is not None)
        for path, outcome in zip(waiting, outcomes, strict=True):
            # The tree first: a record in the results means that its tree is there.
            if outcome.tree is not None and save_trees is not None:
                outcome.tree.save(tree_path(save_trees, path))
            if out is not None:
                out.add(outcome.record)
            known[path] = outcome.record
        yield from (record for image in batch if (record := known[image]) is not None)


def _known(
    predictor: Predictor,
    image: str,
    settings: Settings,
    mpp: float | None,
    out: ResultFile | None,
    save_trees: str | os.PathLike[str] | None,
) -> Record | None:
    """The record of an image that is done, tree and all."""
    if out is None or not out.done:
        return None
    if save_trees is not None and not tree_path(save_trees, image).exists():
        return None
    return out.done.get(resume_key(predictor.head(image, settings, mpp)))
