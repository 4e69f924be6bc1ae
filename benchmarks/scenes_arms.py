"""What is compared on the scenes, and with what settings."""

from __future__ import annotations

from dataclasses import dataclass

TRACKS = ("labels", "hints")

BASE = 64
DEEPEST = 4
"""Depth at which 64 px show 85 px of a scene (1,360 px at 1,024); a sign is about 40 px wide there."""

COMMON = (
    "widths=[16,32,64,128]",
    f"base_resolution={BASE}",
    "turn=false",
    "mirror=true",
    "shift=0.2",
    "jitter=0.1",
    "batch_size=8",
    "lr=1e-3",
    "weight_decay=0.05",
)
"""The same encoder for all. Signs have an up and a down, but no left and right as far as the labels go."""

TOPDOWN = (
    f"max_depth={DEEPEST}",
    "location=local",
    "gradual=true",
    "multi_level=true",
    "level_weights=[0.1,0.1,0.1,0.3,1.0]",
    "c_t=[3.5,8.0,13.0,17.0]",
)
"""Gradual learning is the curriculum over depth: short stages first, since a glance does not tell the label."""

WITH_HINTS = (
    "samples=1",
    "lesson=true",
    "guide=1.0",
    "hint_fall=0.3",
    "hint_balance=2.0",
    "initial_probability=0.15",
    "lambda_f=0.01",
    "lambda_t=0.002",
    "explore=0.0",
)


@dataclass(frozen=True)
class Arm:
    """A method with its settings."""

    method: str
    options: tuple[str, ...]
    epochs: str
    """Of every stage: one number, or a list in brackets with one for each."""
    hint_epochs: str = ""
    """The same in the track with hints, where a lesson comes first."""
    tracks: tuple[str, ...] = ("labels",)


ARMS = {
    "topdown": Arm("topdown", TOPDOWN, "[1,1,1,12]", "[130,1,1,1,12]", ("labels", "hints")),
    **{
        f"fcn-{BASE << n}": Arm("fcn", (f"halvings={n}",), epochs)
        for n, epochs in enumerate(("30", "30", "30", "20", "12"))
    },
    "mil": Arm("mil", (f"depth={DEEPEST}",), "8"),
    # As large as a cell at the deepest level, or larger.
    "mgnet": Arm("mgnet", ("glimpses=6", f"least_scale={0.5**DEEPEST}"), "20"),
    "gfnet": Arm("gfnet", ("looks=6", f"halvings={DEEPEST}"), "[2,10,4,4]"),
}
"""An epoch of `mil` or of `fcn` at 1,024 px takes two cores some minutes, which is what bounds their number."""
