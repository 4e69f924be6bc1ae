"""A cohort as an index of thumbnails: static HTML in pages that a browser can hold, rewritten as images are done.

``index.html`` tells how far the cohort is and names what failed; it and ``page-2.html``, ... show the images in the
order in which they are given. Where entries are only added at the end, only the index and the last pages change.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pyrtrav.explain.frame import draw_thumbnail, frame_of
from pyrtrav.explain.lettering import probability_text
from pyrtrav.explain.templates import rendered
from pyrtrav.files import make_folder, written_whole
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.tree import Record

ENTRIES_A_PAGE = 200

THUMBNAIL_SIDE = 192
"""Pixels along the long side."""

THUMBNAILS = "thumbnails"
"""Their folder in the index's."""

_STEM_BYTES = 100
"""Of the name of an image in that of its thumbnail."""

_MOST_FAILED = 200
"""Failed images that the index names; of more it tells the number."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a cohort."""

    image: str
    """Its name."""
    status: str = "ok"
    """As in a result record; all but ``ok`` has failed."""
    label: str | None = None
    probability: float | None = None
    """Of the label, 0..1."""
    error: str | None = None
    cost: str = ""
    """In words."""
    thumbnail: Path | None = None
    links: Mapping[str, Path] = field(default_factory=dict)
    """Files that are there, by what they are called, such as ``{"tree": Path("trees/a.json")}``."""

    @classmethod
    def of(cls, record: Record, *, thumbnail: Path | None = None, links: Mapping[str, Path] | None = None) -> Entry:
        """Return the entry of a result record."""
        found, cost = record.get("prediction"), record.get("cost")
        return cls(
            image=str(record["image"]),
            status=str(record["status"]),
            label=found and str(found["label"]),
            probability=found and float(found["probabilities"][found["label"]]),
            error=str(record["error"]["message"]) if "error" in record else None,
            cost=_cost(cost) if cost else "",
            thumbnail=thumbnail,
            links=links or {},
        )


def write_index(
    folder: str | os.PathLike[str], entries: Sequence[Entry], *, title: str = "pyrtrav", total: int | None = None
) -> Path:
    """Write the pages, each whole or not at all, and return the first; pages that are as they were stay untouched.

    Args:
        folder: where the pages go; made where it is missing. Links lead from here.
        entries: the images that are done, or failed, so far.
        total: images of the whole cohort, where it is known.

    Raises:
        ConfigError: the folder cannot be made or written to.
    """
    target = make_folder(folder)
    starts = range(0, max(len(entries), 1), ENTRIES_A_PAGE)
    for page, start in reversed(list(enumerate(starts, 1))):
        # The index last: the pages that it names are there.
        shown = [_shown(target, i, entries[i]) for i in range(start, min(start + ENTRIES_A_PAGE, len(entries)))]
        text = rendered(
            "gallery.html",
            title=title,
            summary=_summary(entries, total) if page == 1 else None,
            pages=[(number, _page_name(number)) for number in range(1, len(starts) + 1)] if page == 1 else [],
            page=page,
            before=_page_name(page - 1) if page > 1 else None,
            after=_page_name(page + 1) if page < len(starts) else None,
            entries=shown,
        )
        _write(target / _page_name(page), text)
    _remove_pages(target, after=len(starts))
    return target / _page_name(1)


def thumbnail_path(folder: str | os.PathLike[str], image: str, fingerprint: str = "") -> Path:
    """Where the thumbnail of an image, as it is now, is saved: in ``folder/thumbnails``."""
    name = os.path.basename(image.rstrip("/\\")).partition(".")[0]
    stem = os.fsencode(name)[:_STEM_BYTES].decode("utf-8", "ignore") or "image"
    digest = hashlib.sha256(os.fsencode(image) + fingerprint.encode()).hexdigest()[:12]
    return Path(folder) / THUMBNAILS / f"{stem}-{digest}.jpg"


def save_thumbnail(pyramid: Pyramid, folder: str | os.PathLike[str], fingerprint: str = "") -> Path:
    """Write a small JPEG of an image and return its name, that of ``thumbnail_path``.

    Raises:
        ConfigError: the folder cannot be made or written to.
        CorruptImageError: a tile cannot be decoded.
    """
    path = thumbnail_path(folder, pyramid.path, fingerprint)
    make_folder(path.parent)
    picture = draw_thumbnail(pyramid, frame_of(pyramid.bounds, THUMBNAIL_SIDE, 1))
    with written_whole(path) as beside:
        picture.save(beside, format="JPEG", quality=82, optimize=True)
    return path


def _page_name(page: int) -> str:
    return "index.html" if page == 1 else f"page-{page}.html"


def _cost(cost: Mapping[str, Any]) -> str:
    looks = f"{cost['fixations']:,} look{'' if cost['fixations'] == 1 else 's'}"
    parts = [looks, f"{cost['tiles_distinct']:,} of {cost['tiles_total']:,} tiles"]
    if "total" in cost["seconds"]:
        parts.append(f"{cost['seconds']['total']:.2f} s")
    return ", ".join(parts)


def _summary(entries: Sequence[Entry], total: int | None) -> dict[str, Any]:
    failed = [(i, entry) for i, entry in enumerate(entries) if entry.status != "ok"]
    return {
        "done": len(entries),
        "total": total,
        "labels": sorted(Counter(entry.label for entry in entries if entry.label is not None).items()),
        "failed": len(failed),
        "named": [
            {"link": f"{_page_name(i // ENTRIES_A_PAGE + 1)}#image-{i + 1}", "image": entry.image, "error": entry.error}
            for i, entry in failed[:_MOST_FAILED]
        ],
    }


def _shown(folder: Path, number: int, entry: Entry) -> dict[str, Any]:
    """An entry in the words of the template."""
    return {
        "number": number + 1,
        "image": entry.image,
        "failed": entry.status != "ok",
        "label": entry.label,
        "probability": None if entry.probability is None else probability_text(entry.probability),
        "error": entry.error,
        "cost": entry.cost,
        "thumbnail": _link(folder, entry.thumbnail) if entry.thumbnail else None,
        "links": [(name, _link(folder, path)) for name, path in entry.links.items()],
    }


def _link(folder: Path, path: Path) -> str:
    """The path as seen from the folder, for a browser: no character of a file name means anything there."""
    relative = os.path.relpath(path, folder).replace(os.sep, "/")
    # A first part with a colon would be a scheme.
    return "./" + quote(os.fsencode(relative))


def _write(path: Path, text: str) -> None:
    content = text.encode("utf-8", "replace")
    if not path.is_file() or path.read_bytes() != content:
        with written_whole(path) as beside:
            beside.write_bytes(content)


def _remove_pages(folder: Path, after: int) -> None:
    """Remove what an earlier index of more images left."""
    page = after + 1
    while (folder / _page_name(page)).is_file():
        (folder / _page_name(page)).unlink()
        page += 1
