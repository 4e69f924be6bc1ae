"""Which images a cohort is: files, folders, patterns, URLs and tables, in the order in which they are given."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Collection, Iterator, Sequence

from pyrtrav.errors import ConfigError, DatasetError
from pyrtrav.predict import Input
from pyrtrav.pyramid.inspect import claims, companions
from pyrtrav.pyramid.open import check_mpp
from pyrtrav.pyramid.source import full_name, is_url
from pyrtrav.tables import is_table, parse_table
from pyrtrav.training.listing import walk

COLUMNS = ("path", "mpp")
"""Of a table; others, such as the ``label`` of training data, are not used."""


def find_images(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    mpp: float | None = None,
    without: Collection[str | os.PathLike[str]] = (),
) -> tuple[list[Input], list[str]]:
    """Return the images that the inputs name, each once, and the files in their folders that are none.

    Args:
        inputs: Files and URLs are taken as they are. Folders are searched, sorted, hidden entries skipped. Of what a
            pattern (``*``, ``**``, ``?``, ``[]``) matches, the same. A table (.csv, .parquet) has a column ``path``,
            relative to its folder, and if wanted ``mpp``.
        mpp: micrometres per pixel of those for which no table says it.
        without: files and folders, such as those of results, that a search leaves out, with all below; a search that
            begins in one of them does not.

    Raises:
        ConfigError: a folder or pattern without an image, or an mpp that is none.
        DatasetError: a folder cannot be listed; a table is damaged, with its line.
    """
    check_mpp(mpp)
    images: dict[str, tuple[Input, str]] = {}
    others: list[str] = []
    apart = {full_name(path) for path in without}
    for item in inputs:
        for found, source in _named(os.fspath(item), others, apart):
            name = full_name(found.path)
            known, first = images.get(name, (found, source))
            if None not in (known.mpp, found.mpp) and known.mpp != found.mpp:
                raise DatasetError(
                    f"{source}: {found.path} has mpp {found.mpp:g}, but {known.mpp:g} at {first}; keep one of the rows"
                )
            images[name] = (known if found.mpp is None else Input(known.path, found.mpp)), first
    return [Input(found.path, mpp if found.mpp is None else found.mpp) for found, _ in images.values()], others


def _named(path: str, others: list[str], apart: Collection[str]) -> Iterator[tuple[Input, str]]:
    """What one input names, and where it is named; adds to the files that are no images."""
    if is_url(path):
        yield Input(path), path
    elif os.path.isdir(path) and not claims(path):
        below = _below(path, others, _elsewhere(path, apart))
        if not below:
            raise ConfigError(f"{path}: the folder holds no image that can be opened")
        yield from ((Input(image), path) for image in below)
    elif is_table(path) and os.path.isfile(path):
        yield from _rows(path)
    elif glob.has_magic(path) and not os.path.lexists(path):
        matching = _matching(path, others, _elsewhere(path, apart))
        if not matching:
            raise ConfigError(f"{path}: matches no image that can be opened")
        yield from ((Input(image), path) for image in matching)
    else:
        yield Input(path), path


def _elsewhere(searched: str, apart: Collection[str]) -> set[str]:
    """The paths that are to be left out, but for those in which this folder or pattern itself begins."""
    while glob.has_magic(searched) and not os.path.lexists(searched):
        searched = os.path.dirname(searched)
    return {path for path in apart if not _is_part(full_name(searched), {path})}


def _below(folder: str, others: list[str], apart: set[str]) -> list[str]:
    listings = list(walk(folder))
    no_images = (other for listing in listings for other in listing.others)
    others += sorted((other for other in no_images if not _is_part(full_name(other), apart)), key=os.fsencode)
    images = (image for listing in listings for image in listing.images)
    return sorted((image for image in images if not _is_part(full_name(image), apart)), key=lambda i: i.split(os.sep))


def _matching(pattern: str, others: list[str], apart: set[str]) -> list[str]:
    """The images that a pattern matches; parts of one (chunks, data folders) are none."""
    images: list[str] = []
    parts: set[str] = set()
    no_images: list[str] = []
    for path in sorted(glob.glob(pattern, recursive=True), key=lambda path: path.split(os.sep)):
        if _is_part(path, parts) or _is_part(full_name(path), apart):
            continue
        if claims(path):
            images.append(path)
            parts |= companions(path) | ({path} if os.path.isdir(path) else set())
        elif os.path.isdir(path):
            images += _below(path, no_images, apart)
        else:
            no_images.append(path)
    found = [image for image in dict.fromkeys(images) if not _is_part(image, parts - {image})]
    others += [path for path in dict.fromkeys(no_images) if not _is_part(path, parts)]
    return found


def _is_part(path: str, parts: Collection[str]) -> bool:
    """Whether the path is one of the parts or lies below one."""
    while path and path not in parts:
        above = os.path.dirname(path)
        path = "" if above == path else above
    return bool(path)


def _rows(path: str) -> Iterator[tuple[Input, str]]:
    table = parse_table(os.path.abspath(path), COLUMNS, needed=("path",), numbers=("mpp",))
    folder = os.path.dirname(path)
    for where, values in table.records:
        fields = dict(zip(table.columns, values, strict=True))
        named = fields["path"]
        if not named or "\0" in named:
            raise DatasetError(f"{where}: the path is {'damaged' if named else 'empty'}; correct or remove the row")
        image = named if is_url(named) else os.path.normpath(os.path.join(folder, named))
        yield Input(image, _mpp(fields.get("mpp", ""), where)), where


def _mpp(said: str, where: str) -> float | None:
    """A wrong one is told before the run begins: then it costs nothing."""
    if not said:
        return None
    try:
        mpp = float(said)
    except ValueError:
        mpp = math.nan
    if not 0 < mpp < math.inf:
        raise DatasetError(f"{where}: mpp is {said!r}, no number of micrometres above 0; correct it or leave it empty")
    return mpp
