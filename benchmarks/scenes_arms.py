"""What is compared on the scenes, and with what settings."""

from __future__ import annotations

from dataclasses import dataclass

TRACKS = ("labels", "hints")

BASE = 64
DEEPEST = 4
"""Depth at which 64 px show 85 px of a scene (1,360 px at 1,024); a sign is about 40 px wide there."""

COMMON = ("widths=[8,16,32,64]", f"base_resolution={BASE}", "turn=false", "jitter=0.1")
"""The same encoder for all. Signs have an up and a down, and mirrored arrows mean something else: no turns."""

TOPDOWN = (
    f"max_depth={DEEPEST}",
    "gradual=true",
    "multi_level=true",
    "level_weights=[0.2,0.2,0.2,0.4,1.0]",
    "c_t=[3.0,7.0,12.0,18.0]",
)

WITH_HINTS = ("samples=1", "guide=0.5", "hint_fall=0.3", "lambda_f=0.1", "explore=0.0")


@dataclass(frozen=True)
class Arm:
    """A method with its settings."""

    method: str
    options: tuple[str, ...]
    epochs: str
    """Of every stage: one number, or a list in brackets with one for each."""
    tracks: tuple[str, ...] = ("labels",)


ARMS = {
    "topdown": Arm("topdown", TOPDOWN, "[4,4,6,20]", ("labels", "hints")),
    **{f"fcn-{BASE << n}": Arm("fcn", (f"halvings={n}",), "40") for n in range(DEEPEST + 1)},
    "mil": Arm("mil", (f"depth={DEEPEST}",), "40"),
}
