"""Where the files of a zarr hierarchy lie: a folder or a zip file.

Another place is another class with the three methods of ``Store``, which may be called from several threads.
"""

from __future__ import annotations

import json
import os
import zipfile
from threading import Lock
from typing import Any, Protocol

METADATA_BYTES = 16 << 20
"""A metadata file above this is damaged."""

MISSING = (FileNotFoundError, NotADirectoryError)
"""What ``Store.read`` raises where there is no such file."""


class Store(Protocol):
    """Where the files of a zarr hierarchy lie."""

    def size(self, key: str) -> int | None:
        """Bytes of a file, None where there is none."""

    def read(self, key: str, start: int, length: int) -> bytes:
        """Bytes of a file, fewer than asked for where it ends; FileNotFoundError where there is none."""

    def close(self) -> None: ...


class FolderStore:
    """A folder on a local disk."""

    def __init__(self, root: str) -> None:
        self._prefix = os.path.join(root, "")

    def size(self, key: str) -> int | None:
        try:
            return os.stat(self._prefix + key).st_size
        except MISSING:
            return None

    def read(self, key: str, start: int, length: int) -> bytes:
        file = os.open(self._prefix + key, os.O_RDONLY)
        try:
            # Asking for no more than there is: `length` is a bound, and memory is taken for what is asked for.
            return os.pread(file, max(0, min(length, os.fstat(file).st_size - start)), start)
        finally:
            os.close(file)

    def close(self) -> None:
        pass


class ZipStore:
    """A zip file that holds a hierarchy, at its root or in its only folder."""

    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path)
        self._lock = Lock()
        tops = {name.split("/", 1)[0] for name in self._zip.namelist() if "/" in name}
        self._prefix = ""
        if len(tops) == 1 and not any(self.size(name) is not None for name in (".zattrs", "zarr.json", ".zgroup")):
            self._prefix = tops.pop() + "/"

    def _info(self, key: str) -> zipfile.ZipInfo | None:
        return self._zip.NameToInfo.get(self._prefix + key)

    def size(self, key: str) -> int | None:
        info = self._info(key)
        return None if info is None else info.file_size

    def read(self, key: str, start: int, length: int) -> bytes:
        info = self._info(key)
        if info is None:
            raise FileNotFoundError(f"{key} is not in the zip file")
        with self._lock, self._zip.open(info) as file:
            file.seek(start)
            return file.read(length)

    def close(self) -> None:
        self._zip.close()


def read_json(store: Store, key: str) -> dict[str, Any] | None:
    """Return a metadata file's object; None where there is no such file.

    Raises:
        ValueError: not an object in JSON.
    """
    try:
        data = store.read(key, 0, METADATA_BYTES + 1)
    except MISSING:
        return None
    if len(data) > METADATA_BYTES:
        raise ValueError(f"{key} is over {METADATA_BYTES:,} bytes long, which no metadata is")
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"{key} holds no JSON object")
    return value
