"""Thousands of labelled images known, few of them open."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from pyrtrav.errors import PyramidError
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.costs import check_glance
from pyrtrav.pyramid.pixels import Channels


class OpenImages:
    """Pyramids by path, the least recently used closed beyond ``limit``."""

    def __init__(
        self,
        classes: Sequence[str],
        base_resolution: int,
        *,
        channels: Channels = 3,
        window: tuple[float, float] | None = None,
        limit: int = 256,
    ) -> None:
        self.classes, self._base = tuple(classes), base_resolution
        self._channels, self._window, self._limit = channels, window, limit
        self._open: OrderedDict[str, Pyramid] = OrderedDict()

    def open_all(self, paths: Sequence[str]) -> tuple[list[Pyramid | None], dict[str, PyramidError]]:
        """Return a pyramid for each path, None where it cannot be opened, and why."""
        errors: dict[str, PyramidError] = {}
        pyramids: list[Pyramid | None] = []
        for path in paths:
            try:
                pyramids.append(self._get(path))
            except PyramidError as error:
                errors[path] = error
                pyramids.append(None)
        # Closing comes last: a batch larger than the limit still holds its own.
        while len(self._open) > max(self._limit, len(paths)):
            self._open.popitem(last=False)[1].close()
        return pyramids, errors

    def _get(self, path: str) -> Pyramid:
        if path not in self._open:
            pyramid = open_pyramid(path, channels=self._channels, window=self._window)
            try:
                check_glance(pyramid, self._base)
            except PyramidError:
                pyramid.close()
                raise
            self._open[path] = pyramid
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
