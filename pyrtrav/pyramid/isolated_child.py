"""A reader: the process in which ``isolated`` images are opened and decoded."""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrtrav.errors import CorruptImageError, PyramidError, UnsupportedFormatError
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.child import end_with_parent
from pyrtrav.pyramid.open import open_as
from pyrtrav.pyramid.slide import SlidePyramid

OPEN_IMAGES = 8

_opened: OrderedDict[tuple[str, ...], Pyramid] = OrderedDict()


def main(pipe: str, *imports: str) -> None:
    """Answer until the other end of the pipe is closed."""
    end_with_parent()
    for name in imports:
        importlib.import_module(name)
    with Connection(int(pipe)) as ends:
        ends.send_bytes(b"{}")  # it is ready
        while True:
            try:
                request = json.loads(ends.recv_bytes())
            except EOFError:
                return
            try:
                answer, samples = _answer(request)
            except Exception as error:  # noqa: BLE001 - the process that asked makes an error of it
                answer, samples = {"error": _said(error, request)}, None
            ends.send_bytes(json.dumps(answer).encode())
            if samples is not None:
                ends.send_bytes(np.ascontiguousarray(samples).data.cast("B"))


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], NDArray[Any] | None]:
    pyramid = _open(request)
    if request["what"] == "header":
        assert isinstance(pyramid, SlidePyramid)
        properties, sizes = pyramid.header()
        return {"properties": properties, "sizes": sizes}, None
    raw = pyramid._decode_tile(*request["tile"])
    if raw is None:
        return {}, None
    samples = raw.samples
    return {"shape": samples.shape, "dtype": samples.dtype.str, "stored_bytes": raw.stored_bytes}, samples


def _open(request: dict[str, Any]) -> Pyramid:
    """The image as it is asked for; one that changed since is opened again."""
    channels = request["channels"]
    key = tuple(map(str, (request["path"], request["backend"], channels, request["state"])))
    if key not in _opened:
        # Samples are given as they are stored: finding a display window would decode a level for nothing.
        options = {"channels": tuple(channels) if isinstance(channels, list) else channels, "window": (0.0, 1.0)}
        _opened[key] = open_as(request["backend"], request["path"], options)
        if len(_opened) > OPEN_IMAGES:
            _opened.popitem(last=False)[1].close()
    _opened.move_to_end(key)
    return _opened[key]


def _said(error: Exception, request: dict[str, Any]) -> dict[str, Any]:
    if isinstance(error, CorruptImageError):
        return {"kind": "corrupt", "reason": error.reason, "tile": [error.level, error.column, error.row]}
    if isinstance(error, UnsupportedFormatError):
        return {"kind": "unsupported", "reason": str(error)}
    if isinstance(error, PyramidError):
        return {"kind": "pyramid", "reason": str(error)}
    # Codecs raise whatever damaged bytes lead them to.
    tile = request.get("tile", [None, None, None])[:3]
    return {"kind": "corrupt", "reason": f"{type(error).__name__}: {str(error)[:200]}", "tile": tile}
