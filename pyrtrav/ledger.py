"""What looking at an image cost, as the record says it, and what the part of it down to each depth cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pyrtrav.methods import Model
from pyrtrav.pyramid import Pyramid
from pyrtrav.pyramid.costs import pixels_decoded_for
from pyrtrav.trace import Trace
from pyrtrav.tree import ParseTree


@dataclass(frozen=True, slots=True)
class DepthCost:
    """The cost of a run's looks down to a depth."""

    fixations: int
    macs: int
    pixels_decoded: int
    """Pixels of the stored tiles that the looks touch, each once: a cache changes nothing."""
    seconds: float
    """Of the run's measured time, shared out by fixations."""
    judged_macs: int
    """Where a belief is formed after each depth on the way, to know whether the image may leave."""
    bytes_read: int | None
    """Compressed bytes read until then; None where they are unknown, or the run did not go depth by depth."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a model counts in the part of a trace down to a depth, per image."""

    macs: list[int]
    judged_macs: list[int]


def count_prefix(model: Model, part: Trace) -> Prefix:
    """Count the multiply-accumulates of a run that looks no further."""
    macs, judged = model.macs(part), part.judged
    part.judged = True
    found = Prefix(macs, model.macs(part))
    part.judged = judged
    return found


def cost_of(
    trace: Trace, i: int, image: Pyramid, macs: int, encoded: int, open_seconds: float, elapsed: float
) -> dict[str, Any]:
    """Return the image's ledger; the time of a batch is shared out by fixations."""
    fixations = int((trace.image == i).sum())
    share = fixations / max(len(trace.image), 1)
    cost = replace(
        image.cost,
        tiles_total=image.tiles_total,
        pixels_encoded=encoded,
        fixations=fixations,
        macs=macs,
        truncated=bool(trace.truncated[i]),
        left_early=bool(trace.left[i] >= 0),
        seconds={
            "open": round(open_seconds, 6),
            **{phase: round(seconds * share, 6) for phase, seconds in trace.seconds.items()},
            "total": round(open_seconds + elapsed * share, 6),
        },
    )
    return asdict(cost)


def costs_by_depth(
    tree: ParseTree, image: Pyramid, trace: Trace, i: int, prefixes: Sequence[Prefix]
) -> tuple[DepthCost, ...]:
    """Return the cost of an image's looks down to each depth; there is a prefix for each.

    The last one is the whole run, whatever depths its looks have.
    """
    seconds = tree.record["cost"]["seconds"]
    costs = []
    for depth, prefix in enumerate(prefixes):
        last = depth == len(prefixes) - 1
        nodes = [node for node in tree.nodes if last or node.depth <= depth]
        looks = [(node.region, round(node.region.width / node.downsample)) for node in nodes]
        looking = (seconds["total"] - seconds["open"]) * len(nodes) / len(tree.nodes)
        read = trace.bytes_read[min(depth, len(trace.bytes_read) - 1)][i] if trace.bytes_read else None
        costs.append(
            DepthCost(
                len(nodes),
                prefix.macs[i],
                pixels_decoded_for(image, looks),
                seconds["open"] + looking,
                prefix.judged_macs[i],
                read,
            )
        )
    return tuple(costs)


def pixel_rule(image: Pyramid) -> dict[str, Any]:
    """Return how the file's samples became the model's pixels, and how large those of level 0 are."""
    rule = image.pixel_rule
    return {
        "mpp": image.mpp,
        "backend": image.backend,
        "channels": rule.channels,
        "chosen": list(rule.chosen) if rule.chosen else None,
        "window": list(rule.window) if rule.window else None,
    }
