"""Fully convolutional baseline: the whole image at one resolution, everything looked at alike.

Source: the baselines BL of "Image classification through top-down image pyramid traversal", section 5.1, tables 1 to 5:
the encoder's convolutions over the whole image, global average pooling, two fully connected layers, classification.

Differs from the paper:
1. The image is read and convolved in blocks with a halo, so that memory does not grow with the image; the features
   equal those of the whole image at once. In training a block is read and convolved again for its gradient.
2. The image is centred in a square, never squashed.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pyrtrav.colours import Palette
from pyrtrav.config import check_range
from pyrtrav.draws import Generators
from pyrtrav.encoders.base import Encoder, count_macs
from pyrtrav.encoders.paper import FullyConnectedHead
from pyrtrav.errors import PyramidError
from pyrtrav.geometry import Region, halvings
from pyrtrav.methods.base import Method, Model, Stage
from pyrtrav.methods.cross_entropy import CrossEntropy
from pyrtrav.sampling import Image, read_block, root_of
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.tree import Node

BLOCK_PIXELS = 4_000_000
"""Pixels convolved at once, the halo not counted."""


@dataclass(frozen=True)
class FcnConfig:
    """How a fully convolutional baseline is made."""

    halvings: int = 2
    """The image is read at base resolution * 2^halvings: as finely as a traversal of that depth, but everywhere."""

    def __post_init__(self) -> None:
        check_range(self, "halvings", least=0)


class Span(NamedTuple):
    """What a block reads along one axis, in pixels as the image is read, and which of its features are its own."""

    first: int
    last: int
    kept: slice


class Fcn(Model):
    """An encoder over the whole image, pooled, and a head of two hidden layers."""

    has_patches = False

    max_depth = 0

    def __init__(self, config: FcnConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        # A block equals the whole image only where no layer looks beyond its window; this is an error for others.
        self.stride, self.field = encoder.total_stride, encoder.receptive_field
        self.head = FullyConnectedHead(encoder.vector_size, classes)

    def side_of(self, root: Region) -> int:
        """Side in pixels at which an image is read: never upsampled."""
        base = self.encoder.base_resolution
        return int(base * 2 ** min(self.config.halvings, halvings(root, base)))

    def depth_of(self, image: Image, settings: Settings) -> int:
        return 0

    def look(self, images: Sequence[Image], settings: Settings, generator: Generators | None = None) -> Trace:
        device = next(self.parameters()).device
        trace = Trace([root_of(image, self.encoder.base_resolution) for image in images], device)
        vectors = []
        for number, image in enumerate(images):
            try:
                vectors.append(self._whole(image, trace.roots[number], trace.seconds))
            except PyramidError as error:
                trace.errors[number] = error
        seen = np.flatnonzero(trace.alive)
        zeros = np.zeros(len(seen), np.int64)
        region = np.array([trace.roots[i].as_tuple() for i in seen]).reshape(-1, 4)
        vector = torch.stack(vectors) if vectors else torch.zeros(0, self.encoder.vector_size, device=device)
        trace.add_fixations(seen, zeros, 0, zeros, zeros, region, vector)
        return trace

    def _whole(self, image: Image, root: Region, seconds: dict[str, float]) -> Tensor:
        """Mean of the features over the image, block by block."""
        side = self.side_of(root)
        step = max(self.stride, math.isqrt(BLOCK_PIXELS) // self.stride * self.stride)
        # Of a single block the activations are kept; of many they would not fit.
        again = side > step and torch.is_grad_enabled()
        total, count = torch.zeros(self.encoder.vector_size, device=self.encoder.mean.device), 0
        for top in range(0, side, step):
            for left in range(0, side, step):
                spans = self._span(top, step, side), self._span(left, step, side)
                if again:
                    part, size = checkpoint(self._block, image, root, side, *spans, seconds, use_reentrant=False)
                else:
                    part, size = self._block(image, root, side, *spans, seconds)
                total, count = total + part, count + size
        return total / count

    def _features(self, images: Tensor) -> Tensor:
        return self.encoder.features(self.encoder.normalise(images))

    def _span(self, start: int, step: int, side: int) -> Span:
        halo = -(-self.field // self.stride) * self.stride
        first, last = max(0, start - halo), min(side, start + step + halo)
        kept = (start - first) // self.stride
        # What a pooling leaves over at the far edge belongs to the last block.
        return Span(first, last, slice(kept, None if start + step >= side else kept + step // self.stride))

    def _block(
        self, image: Image, root: Region, side: int, rows: Span, columns: Span, seconds: dict[str, float]
    ) -> tuple[Tensor, int]:
        """Sum of the features of one block, and their number; adds the time of both phases."""
        scale = root.width / side
        width, height = columns.last - columns.first, rows.last - rows.first
        place = Region(root.x + columns.first * scale, root.y + rows.first * scale, width * scale, height * scale)
        begun = time.perf_counter()
        stored = read_block(image, place, (width, height)).to(self.encoder.mean.device)
        read = time.perf_counter()
        seconds["read"] += read - begun
        dtype = self.encoder.mean.dtype
        pixels = Palette([image])(stored, np.zeros(1, np.int64), dtype)
        features = self.encoder.running(self._features, pixels, dtype)
        kept = features[0, :, rows.kept, columns.kept]
        total = kept.sum((1, 2))
        seconds["encode"] += time.perf_counter() - read
        return total, kept.shape[1] * kept.shape[2]

    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        logits: Tensor = self.head(trace.vector)
        full = torch.zeros(trace.images, logits.shape[1], dtype=logits.dtype, device=logits.device)
        return full.index_copy(0, torch.from_numpy(trace.image).to(logits.device), logits)

    def macs(self, trace: Trace) -> list[int]:
        device = next(self.parameters()).device
        head = count_macs(self.head, torch.zeros(1, self.encoder.vector_size, device=device))
        return [self._trunk_macs(side) + head for side in map(self.side_of, trace.roots)]

    def _trunk_macs(self, side: int) -> int:
        """Of the whole image at once: the blocks' halos are an artefact of bounded memory."""
        # On the meta device nothing is computed; the shapes are enough.
        trunk = copy.deepcopy(self.encoder).to("meta")
        return count_macs(trunk.features, torch.zeros(1, trunk.channels, side, side, device="meta"))

    def pixels_encoded(self, trace: Trace) -> list[int]:
        return [self.side_of(root) ** 2 for root in trace.roots]

    def nodes(self, trace: Trace, image: int) -> tuple[Node, ...]:
        root = trace.roots[image]
        downsample = root.width / self.side_of(root)
        return (Node(0, (), 0, 0, root, downsample, 1.0, None, ()),)


METHOD = Method(
    name="fcn",
    paper="Image classification through top-down image pyramid traversal",
    Config=FcnConfig,
    supports=frozenset(),
    encoders=None,
    build=Fcn,
    stages=lambda config: [Stage("whole image", 0, CrossEntropy())],
)
