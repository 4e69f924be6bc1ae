"""Fully convolutional baseline: the whole image at one resolution, everything looked at alike.

Source: the baselines BL of "Image classification through top-down image pyramid traversal", section 5.1, tables 1 to 5:
the encoder's convolutions over the whole image, global average pooling, two fully connected layers, classification.

Differs from the paper:
1. The image is read and convolved in strips with a halo, so that memory does not grow with its height; the features
   equal those of the whole image at once.
2. The image is centred in a square, never squashed.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyrtrav.encoders.base import Encoder, count_macs
from pyrtrav.encoders.paper import FullyConnectedHead
from pyrtrav.errors import ConfigError, PyramidError
from pyrtrav.geometry import Region, halvings, root_region
from pyrtrav.methods.base import Method, Metrics, Model, Objective, Stage
from pyrtrav.policy_gradient import batch_mean, log_likelihood
from pyrtrav.sampling import Image
from pyrtrav.selection import Settings
from pyrtrav.trace import Trace
from pyrtrav.traversal import Generators
from pyrtrav.tree import Node

STRIP_PIXELS = 4_000_000
"""Pixels convolved at once."""


@dataclass(frozen=True)
class FcnConfig:
    """How a fully convolutional baseline is made."""

    halvings: int = 2
    """The image is read at base resolution * 2^halvings: as finely as a traversal of that depth, but everywhere."""

    def __post_init__(self) -> None:
        if self.halvings < 0:
            raise ConfigError(f"halvings must be 0 or more, got {self.halvings}")


class Fcn(Model):
    """An encoder over the whole image, pooled, and a head of two hidden layers."""

    max_depth = 0

    def __init__(self, config: FcnConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        # A strip equals the whole image only where no layer looks beyond its window; this is an error for others.
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
        trace = Trace([root_region(image.bounds, self.encoder.base_resolution) for image in images], device)
        vectors = []
        for number, image in enumerate(images):
            begun = time.perf_counter()
            try:
                vectors.append(self._whole(image, trace.roots[number], device))
            except PyramidError as error:
                trace.errors[number] = error
            trace.seconds["encode"] += time.perf_counter() - begun
        seen = np.flatnonzero(trace.alive)
        zeros = np.zeros(len(seen), np.int64)
        region = np.array([trace.roots[i].as_tuple() for i in seen]).reshape(-1, 4)
        vector = torch.stack(vectors) if vectors else torch.zeros(0, self.encoder.vector_size, device=device)
        trace.add_fixations(seen, zeros, 0, zeros, zeros, region, vector)
        return trace

    def _whole(self, image: Image, root: Region, device: torch.device) -> Tensor:
        """Mean of the features over the image, strip by strip."""
        side = self.side_of(root)
        stride = self.stride
        halo = -(-self.field // stride) * stride
        rows = max(stride, STRIP_PIXELS // side // stride * stride)
        total, count = torch.zeros(self.encoder.vector_size, device=device), 0
        for top in range(0, side, rows):
            first, last = max(0, top - halo), min(side, top + rows + halo)
            pixels = self._read(image, root, side, first, last).to(device)
            features = self.encoder.running(self._features, pixels, self.encoder.mean.dtype)
            start = (top - first) // stride
            stop = features.shape[2] if top + rows >= side else start + rows // stride
            kept = features[0, :, start:stop]
            total = total + kept.sum((1, 2))
            count += kept.shape[1] * kept.shape[2]
        return total / count

    def _features(self, images: Tensor) -> Tensor:
        return self.encoder.features(self.encoder.normalise(images))

    def _read(self, image: Image, root: Region, side: int, first: int, last: int) -> Tensor:
        scale = root.width / side
        strip = Region(root.x, root.y + first * scale, root.width, (last - first) * scale)
        patches = image.read_many([strip], (side, last - first))
        if patches.errors[0] is not None:
            raise patches.errors[0]
        return torch.from_numpy(patches.pixels).permute(0, 3, 1, 2)

    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        logits: Tensor = self.head(trace.vector)
        full = torch.zeros(trace.images, logits.shape[1], dtype=logits.dtype, device=logits.device)
        return full.index_copy(0, torch.from_numpy(trace.image).to(logits.device), logits)

    def macs(self, trace: Trace) -> list[int]:
        device = next(self.parameters()).device
        head = count_macs(self.head, torch.zeros(1, self.encoder.vector_size, device=device))
        return [self._trunk_macs(side) + head for side in map(self.side_of, trace.roots)]

    def _trunk_macs(self, side: int) -> int:
        """Of the whole image at once: the strips' halos are an artefact of bounded memory."""
        # On the meta device nothing is computed; the shapes are enough.
        trunk = copy.deepcopy(self.encoder).to("meta")
        return count_macs(trunk.features, torch.zeros(1, trunk.channels, side, side, device="meta"))

    def pixels_encoded(self, trace: Trace) -> list[int]:
        return [self.side_of(root) ** 2 for root in trace.roots]

    def nodes(self, trace: Trace, image: int) -> tuple[Node, ...]:
        root = trace.roots[image]
        downsample = root.width / self.side_of(root)
        return (Node(0, (), 0, 0, root, downsample, 1.0, None, ()),)


class CrossEntropy(Objective):
    """The negative log-likelihood of the labels."""

    def forward(
        self,
        model: Fcn,
        images: Sequence[Image],
        labels: Tensor,
        generator: Generators,
        progress: float = 1.0,
    ) -> tuple[Tensor, Metrics, Trace]:
        trace = model.look(images, Settings(select="all"))
        alive = torch.from_numpy(np.flatnonzero(trace.alive)).to(trace.device)
        logits, target = model.believe(trace, 0)[alive], labels.to(trace.device)[alive]
        loss = -batch_mean(self.criterion(logits, target))
        correct = (logits.argmax(1) == target).double().mean()
        plain = -float(log_likelihood(logits.detach(), target).mean())
        return loss, {"loss": plain, "accuracy": float(correct)}, trace


METHOD = Method(
    name="fcn",
    paper="Image classification through top-down image pyramid traversal",
    Config=FcnConfig,
    supports=frozenset(),
    encoders=None,
    build=Fcn,
    stages=lambda config: [Stage("whole image", 0, CrossEntropy())],
)
