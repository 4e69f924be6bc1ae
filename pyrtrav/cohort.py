"""Many images: what to classify, results appended as they come, one failure never the end of a run."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyrtrav.errors import ConfigError, PyrtravError
from pyrtrav.files import append_line, written_whole
from pyrtrav.predict import Outcome, Predictor
from pyrtrav.pyramid.inspect import claims, companions
from pyrtrav.selection import Settings
from pyrtrav.tree import Record

IMAGES_AT_ONCE = 8
"""Images whose fixations share the encoder's batches."""

FORMATS = (".jsonl", ".csv", ".parquet")


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> tuple[list[str], list[str]]:
    """Return the images that the inputs name, and the files in their folders that are none.

    Files named are taken as they are; folders are searched, sorted, hidden entries skipped.

    Raises:
        ConfigError: a folder holds no image.
    """
    found: list[str] = []
    others: list[str] = []
    for item in inputs:
        path = os.fspath(item)
        if os.path.isdir(path) and not claims(path):
            before = len(found)
            _search(Path(path), found, others)
            if len(found) == before:
                raise ConfigError(f"{path}: the folder holds no image that can be opened")
        else:
            found.append(path)
    return list(dict.fromkeys(found)), others


def _search(folder: Path, found: list[str], others: list[str]) -> None:
    covered: set[str] = set()
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or os.path.abspath(entry) in covered:
            continue
        if claims(str(entry)):
            covered |= {os.path.abspath(other) for other in companions(str(entry))}
            found.append(str(entry))
        elif entry.is_dir():
            _search(entry, found, others)
        else:
            others.append(str(entry))


def resume_key(record: Record) -> str:
    """Two runs of the same image, as it is now, with the same settings and model have the same key."""
    settings = {name: value for name, value in record["settings"].items() if name not in ("mpp", "device")}
    parts = [record["input"]["path"], record["input"]["fingerprint"], settings, record["model"]["sha256"]]
    return json.dumps(parts, sort_keys=True)


class ResultFile:
    """Records by line as they come; CSV and Parquet are made from the lines at the end."""

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise ConfigError(f"{path}: results are written as {', '.join(FORMATS)}")
        if not self.path.parent.is_dir():
            raise ConfigError(f"{path}: its folder does not exist; make it first")
        self.lines = self.path if self.path.suffix == ".jsonl" else self.path.with_name(self.path.name + ".jsonl")
        self.done: dict[str, Record] = {}
        if resume and self.lines.exists():
            self._keep_whole_lines()
        elif self.path.exists() or self.lines.exists():
            raise ConfigError(f"{path}: exists already; add to it with --resume, or choose another --out")

    def _keep_whole_lines(self) -> None:
        """Read what is there, and rewrite it without a torn last line and without failures, which are tried again."""
        for line in self.lines.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                if record["status"] == "ok":
                    self.done[resume_key(record)] = record
            except (ValueError, KeyError, TypeError):
                continue
        with written_whole(self.lines) as beside:
            beside.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in self.done.values()), "utf-8")

    def add(self, record: Record) -> None:
        append_line(self.lines, json.dumps(record, ensure_ascii=False))

    def finish(self) -> None:
        """Make the table that was asked for, and drop the lines that it was made from."""
        if self.path.suffix == ".jsonl":
            return
        records = [json.loads(line) for line in self.lines.read_text("utf-8").splitlines()]
        rows = [flatten(record) for record in records]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with written_whole(self.path) as beside:
            if self.path.suffix == ".csv":
                with beside.open("w", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, columns)
                    writer.writeheader()
                    writer.writerows(rows)
            else:
                _write_parquet(beside, rows, columns)
        self.lines.unlink()


def flatten(record: Record, prefix: str = "") -> dict[str, Any]:
    """Return the record as one row: nested names joined by dots, lists as JSON."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            row |= flatten(value, f"{prefix}{name}.")
        else:
            row[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return row


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("Parquet needs the extra `arrow`: pip install pyrtrav[arrow]") from error
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    pyarrow.parquet.write_table(table, path)


def tree_path(folder: str | os.PathLike[str], image: str) -> Path:
    """Where the tree of an image is saved: its name, and enough of its path's hash to keep equal names apart."""
    mark = hashlib.sha256(os.path.abspath(image).encode()).hexdigest()[:8]
    return Path(folder) / f"{Path(image).name}.{mark}.tree.json"


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
        Path(save_trees).mkdir(parents=True, exist_ok=True)
    waiting: list[str] = []
    for number, image in enumerate(images):
        known = None if out is None else _known(predictor, image, settings, out)
        if known is not None:
            yield known
        else:
            waiting.append(image)
        if len(waiting) == IMAGES_AT_ONCE or (number == len(images) - 1 and waiting):
            for path, outcome in zip(waiting, predictor.predict(waiting, settings, mpp=mpp), strict=True):
                _keep(path, outcome, out, save_trees)
                yield outcome.record
            waiting = []


def _known(predictor: Predictor, image: str, settings: Settings, out: ResultFile) -> Record | None:
    if not out.done:
        return None
    try:
        key = resume_key(predictor.head(image, settings, None))
    except (PyrtravError, OSError):
        return None
    return out.done.get(key)


def _keep(path: str, outcome: Outcome, out: ResultFile | None, save_trees: str | os.PathLike[str] | None) -> None:
    # The tree first: a record in the results means that its tree is there.
    if outcome.tree is not None and save_trees is not None:
        outcome.tree.save(tree_path(save_trees, path))
    if out is not None:
        out.add(outcome.record)
