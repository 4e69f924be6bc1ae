"""What a run read and computed: the product's central claim, counted rather than estimated."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Cost:
    """The cost of one image.

    ``fixations``, ``tiles_distinct`` and ``macs`` are functions of image, model and settings. ``tiles_decoded``,
    ``bytes_read``, ``requests``, ``bytes_fetched`` and ``seconds`` are measurements: they depend on cache and
    machine and are never compared.
    """

    tiles_decoded: int = 0
    """Stored tiles decoded, repeats counted."""
    tiles_distinct: int = 0
    """Different stored tiles that the attended regions touch."""
    tiles_total: int = 0
    """Tiles that the file holds over all its levels (the backend's own, see the backend)."""
    bytes_read: int | None = 0
    """Compressed bytes read for those tiles; None where the backend cannot know (OpenSlide)."""
    requests: int = 0
    """Requests to the server of a remote image, those that open it included; 0 for a local one."""
    bytes_fetched: int = 0
    """All bytes of their answers: tiles, the gaps between tiles that were fetched together, tables; 0 for a local
    image."""
    pixels_decoded: int = 0
    """Pixels of the decoded tiles."""
    pixels_encoded: int = 0
    """Pixels that the encoder saw."""
    fixations: int = 0
    """Looks, the glance included."""
    macs: int = 0
    """Multiply-accumulates of convolutions and fully connected layers."""
    truncated: bool = False
    """Whether ``max_fixations`` or a budget cut the selection short."""
    left_early: bool = False
    """Whether it left before its last depth because a class was probable enough."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase: open, read, encode, total."""
