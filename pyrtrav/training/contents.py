"""Which images have the same content, whatever their names: full contents are compared only where sizes and beginnings
are equal."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Protocol

from pyrtrav.errors import DatasetError
from pyrtrav.pyramid.inspect import companions
from pyrtrav.training.manifest import Row, relative_key

_HEAD_BYTES = 64 << 10


class Placed(Protocol):
    """An image with a side."""

    @property
    def path(self) -> str: ...
    @property
    def split(self) -> str | None: ...


def equal_contents(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows whose images have a content that others have too, together with those others.

    Raises:
        DatasetError: an image cannot be read.
    """
    groups = [list(rows)]
    for key in (_size, _beginning, _content):
        groups = [alike for group in groups for alike in _grouped(key, group) if len(alike) > 1]
    return groups


def check_labels(alike: Iterable[Sequence[Row]]) -> None:
    """Raise DatasetError where one content has two labels."""
    for first, *others in alike:
        for row in others:
            if row.label != first.label:
                raise DatasetError(
                    f"{row.source}: {row.path} has the same content as {first.path} ({first.source}), but "
                    f"label {row.label!r} instead of {first.label!r}; keep the right one"
                )


def leaks(alike: Iterable[Sequence[Placed]]) -> list[str]:
    """Return a warning where one content stands in two splits; none where none does."""
    found = []
    for first, *others in alike:
        other = next((image for image in others if image.split != first.split), None)
        if other is not None:
            found.append(f"{first.path} ({first.split}) and {other.path} ({other.split})")
    if not found:
        return []
    more = f", and {len(found) - 1} other pairs" if len(found) > 1 else ""
    return [f"the same content in two splits flatters the result: {found[0]}{more}; keep one of them"]


def _grouped(key: Callable[[Row], Hashable], rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        try:
            groups[key(row)].append(row)
        except OSError as error:
            raise DatasetError(f"{row.source}: {row.path} cannot be read: {error.strerror or error}") from error
    return list(groups.values())


def _size(row: Row) -> Hashable:
    """Of a file, its bytes; of a folder, the names and bytes of the files directly in it."""
    if not os.path.isdir(row.path):
        return os.path.getsize(row.path)
    with os.scandir(row.path) as entries:
        return tuple(sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file()))


def _beginning(row: Row) -> Hashable:
    """Of a file, a checksum of its first 64 KiB; of a folder, the names and bytes of all files below it."""
    if os.path.isdir(row.path):
        return tuple(sorted((name, os.path.getsize(path)) for name, path in _files(row.path)))
    with open(row.path, "rb") as file:
        return zlib.crc32(file.read(_HEAD_BYTES))  # alike by chance: then the whole contents tell


def _content(row: Row) -> Hashable:
    """SHA-256 of everything that the image consists of, in an order that its own file names do not change."""
    members = [member for root in (row.path, *companions(row.path)) for member in _files(root)]
    digests = []
    for name, path in members:
        with open(path, "rb") as file:
            digests.append((name, hashlib.file_digest(file, "sha256").digest()))
    return tuple(sorted(digests))


def _files(root: str) -> Iterator[tuple[str, str]]:
    """Every file below the folder by its name in it; a file itself has the empty name."""
    if not os.path.isdir(root):
        yield "", root
        return
    for folder, _, names in os.walk(root, onerror=_raise):
        for name in names:
            path = os.path.join(folder, name)
            yield relative_key(path, root), path


def _raise(error: OSError) -> None:
    raise error
