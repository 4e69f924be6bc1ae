"""What is said of a run when it ends; of images that are well nothing is kept but their number."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyrtrav.tree import Record

NAMED = 3
"""Images that a warning names before it only counts."""


@dataclass
class _Group:
    """Images with the same warning."""

    text: str
    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= NAMED:
            self.names.append(name)

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.names[0]}: {self.text}"
        others = ", ..." if self.count > NAMED else ""
        return f"{self.count} images ({', '.join(self.names)}{others}): such as {self.names[0]}, {self.text}"


class Summary:
    """Counts records, and keeps why images failed and what they warn of."""

    def __init__(self) -> None:
        self.images = 0
        self.failures: list[str] = []
        """Each names its image."""
        self._warnings: dict[str, _Group] = {}
        self._no_mpp = _Group("no usable mpp is known, and this model needs none")

    def add(self, record: Record) -> None:
        self.images += 1
        if record["status"] != "ok":
            self.failures.append(record["error"]["message"])
            return
        warnings = record.get("warnings", ())
        for text in warnings:
            # What is said in parentheses is this image's own.
            self._warnings.setdefault(text.partition(" (")[0], _Group(text)).add(record["image"])
        if not warnings and record["input"].get("mpp", 0) is None:
            self._no_mpp.add(record["image"])

    @property
    def warnings(self) -> list[str]:
        """One line for every kind, which counts and names images."""
        return [str(group) for group in self._warnings.values()]

    @property
    def notes(self) -> list[str]:
        """What needs nobody's attention."""
        return [str(self._no_mpp)] if self._no_mpp.count else []
