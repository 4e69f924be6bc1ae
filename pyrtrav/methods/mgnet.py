"""The multi-glimpse network: a chain of glimpses, each anywhere and of any size, and attention over all of them.

Source: "Multi-Glimpse Network: A Robust and Efficient Classification Architecture based on Recurrent Downsampled
Attention".

| paper | code |
|---|---|
| glimpse generator g, matrix A (1), (2) | `GlimpseSampler`, a region of level-0 pixels |
| a^s, a^x, a^y | scale and centre in -1..1 of the root: `Mgnet.region_of` |
| glimpse feature h_t, positional encoding | `trace.vector`, `Mgnet.positions` |
| feature fusion module (3), F_t | `Fusion` |
| localization network (4), gradient re-scaling (5) | `Mgnet.locate`, `scale_gradient` |
| glimpse classifier f_p, global classifier f_g | `Mgnet.judge`, `Mgnet.classify` |
| alpha, total loss (6) | `MgnetConfig.alpha`, `GlimpseLoss` |
| early exit | a run that stops at depth t has seen t + 1 glimpses; `Settings.stop_at` |

Differs from the paper:
1. The image is centred in a square, never squashed; regions are parts of that square.
2. Glimpses of files are sampled from the image at the scale of their region (the largest 2^k below the distance of
   samples), not from its single pixels, of which a slide has too many; `by_scale=false` is the paper's, for images in
   memory.
3. The glimpse classifier is trained from the second glimpse on, as the authors' code does; the first is the same for
   every image. It stays in the model file.
4. In its tree a glimpse's depth is its place in the chain.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.config import check_range
from pyrtrav.draws import Generators
from pyrtrav.encoders.base import Encoder, count_macs, init_xavier
from pyrtrav.errors import ConfigError
from pyrtrav.glimpses import GlimpseSampler
from pyrtrav.methods.base import Method, Metrics, Model, Objective, Stage
from pyrtrav.methods.chain import chain_contributions, chain_nodes, chains, chains_by_length
from pyrtrav.policy_gradient import batch_mean, log_likelihood
from pyrtrav.sampling import Image, Images, root_of
from pyrtrav.selection import Ints, Settings
from pyrtrav.trace import Trace
from pyrtrav.traversal import bytes_read
from pyrtrav.tree import Node


@dataclass(frozen=True)
class MgnetConfig:
    """How many glimpses, how large they may be, and how they are learned."""

    glimpses: int = 4
    """The first, of the whole image, included (T)."""
    least_scale: float = 0.2
    """Least side of a glimpse as a share of the root's."""
    most_scale: float = 0.5
    """Greatest side of a glimpse after the first."""
    alpha: float = 0.6
    """Weight of the glimpse classifier's loss; the rest is the global classifier's."""
    gradient_scale: float = 0.02
    """What the gradient that says where to look is multiplied by (5)."""
    by_scale: bool = True
    """Sample the image at the scale of a glimpse; `false` samples single pixels, of images in memory only."""
    small_regions: float = 0.0
    """Weight of the loss that makes glimpses small, for images that are classified well already; for toy data."""

    def __post_init__(self) -> None:
        check_range(self, "glimpses", least=1)
        check_range(self, "least_scale", "most_scale", above=0, most=1)
        check_range(self, "alpha", least=0, most=1)
        check_range(self, "gradient_scale", "small_regions", least=0)
        if self.least_scale > self.most_scale:
            raise ConfigError(f"least_scale {self.least_scale} is above most_scale {self.most_scale}")

    @property
    def max_depth(self) -> int:
        """Glimpses after the first."""
        return self.glimpses - 1


WELL = 0.4
"""Cross entropy below which an image counts as classified well, for ``small_regions``."""


def _last(settings: Settings) -> int:
    """The place in the chain of the last glimpse."""
    return min(settings.depth, settings.allowed - 1)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * gradient, None


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """Return the value; its gradient is multiplied by ``factor``: equation (5)."""
    scaled: Tensor = _ScaledGradient.apply(value, factor)  # type: ignore[no-untyped-call]
    return scaled


class Fusion(nn.Module):
    """One-head attention over the glimpses so far, layer normalisation, and the last glimpse's row: equation (3)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(size, size, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(size)

    def forward(self, seen: Float[Tensor, "image glimpse size"]) -> Float[Tensor, "image size"]:
        """Return F_t."""
        weights = torch.softmax(self.query(seen) @ self.key(seen).transpose(1, 2) / seen.shape[2] ** 0.5, dim=2)
        fused: Tensor = torch.relu(self.norm(self.out(weights @ self.value(seen)))[:, -1])
        return fused


class Mgnet(Model):
    """Encoder, fusion, localization and two classifiers."""

    def __init__(self, config: MgnetConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config, self.encoder, self.max_depth = config, encoder, config.max_depth
        size = encoder.vector_size + 3
        self.fusion = Fusion(size)
        self.classify = nn.Linear(size, classes)
        self.judge = nn.Linear(encoder.vector_size, classes)
        self.locate = nn.Linear(size, 3)
        init_xavier(self.fusion)
        for module in (self.classify, self.judge, self.locate):
            init_xavier(module)
        self._gradient_scale = config.gradient_scale

    @contextmanager
    def true_gradients(self) -> Iterator[None]:
        """During the block the gradient that says where to look is not scaled (5)."""
        self._gradient_scale = 1.0
        try:
            yield
        finally:
            self._gradient_scale = self.config.gradient_scale

    def depth_of(self, image: Image, settings: Settings) -> int:
        return _last(settings)

    # Look.

    def look(self, images: Images, settings: Settings, generator: Generators | None = None) -> Trace:
        device = next(self.parameters()).device
        trace = Trace([root_of(image, self.encoder.base_resolution) for image in images], device)
        sampler = GlimpseSampler(images, self.encoder.base_resolution, device, by_scale=self.config.by_scale)
        image = np.arange(len(images))
        position = torch.tensor([1.0, 0.0, 0.0], device=device).expand(len(images), 3)
        seen: list[Tensor] = []
        depths = np.full(len(images), _last(settings))
        for step in range(_last(settings) + 1):
            region = self.region_of(trace, image, position)
            vector, read = self._encode(trace, sampler, image, region, settings.encode_batch)
            image, rows = image[read], torch.from_numpy(read).to(device)
            position, seen = position[rows], [earlier[rows] for earlier in seen]
            here = region[rows].detach().double().cpu().numpy()
            zeros = np.zeros(len(image), np.int64)
            trace.add_fixations(image, zeros + step, step, zeros, zeros, here, vector)
            if not len(image):
                break
            seen.append(torch.cat([vector, position.detach()], dim=1))
            trace.bytes_read.append(bytes_read(images))
            self.let_leave(trace, step, settings, depths)
            stay = np.flatnonzero(trace.left[image] < 0)
            if len(stay) < len(image):
                image, seen = image[stay], [earlier[torch.from_numpy(stay).to(device)] for earlier in seen]
                if not len(image):
                    break
            position = self._next(self.fusion(torch.stack(seen, dim=1)))
        return trace

    def _encode(
        self, trace: Trace, sampler: GlimpseSampler, image: Ints, region: Tensor, count: int
    ) -> tuple[Tensor, Ints]:
        """Encode glimpses; returns the vectors of those whose images could be read, and which these are."""
        vectors, kept = [self.judge.weight.new_zeros(0, self.encoder.vector_size)], []
        for start in range(0, len(image), count):
            own = np.arange(start, min(start + count, len(image)))
            with trace.timed("read"):
                patches, errors = sampler(image[own], region[start : start + count])
            for number, error in errors.items():
                trace.errors[int(image[start + number])] = error
            whole = own[trace.alive[image[own]]]
            with trace.timed("encode"):
                if len(whole):
                    vectors.append(self.encoder(patches[torch.from_numpy(whole - start).to(patches.device)]).vector)
            kept.append(whole)
        return torch.cat(vectors), np.concatenate(kept)

    def _next(self, fused: Float[Tensor, "image size"]) -> Float[Tensor, "image 3"]:
        """Scale and centre of the next glimpse, within the root: equations (4) and (5)."""
        least, most = self.config.least_scale, self.config.most_scale
        share = scale_gradient(torch.sigmoid(self.locate(fused)), self._gradient_scale)
        scale = least + (most - least) * share[:, :1]
        return torch.cat([scale, (2 * share[:, 1:] - 1) * (1 - scale)], dim=1)

    def excess(self, trace: Trace, rows: Ints) -> Float[Tensor, "image later"]:
        """Return by how much the scales of the glimpses after the first exceed the least; ``rows`` as of `chains`."""
        seen = self._seen(trace, rows)
        scales = [self._next(self.fusion(seen[:, :count]))[:, :1] for count in range(1, rows.shape[1])]
        return torch.cat(scales, dim=1) - self.config.least_scale if scales else seen.new_zeros(len(rows), 0)

    def region_of(self, trace: Trace, image: Ints, position: Float[Tensor, "image 3"]) -> Float[Tensor, "image 4"]:
        """Return the regions in level-0 pixels of scales and centres in -1..1 of the images' roots."""
        root = torch.tensor([(r.x, r.y, r.width) for r in trace.roots], dtype=torch.float64, device=position.device)
        own = root[torch.from_numpy(image).to(position.device)]
        scale, centre = position[:, :1].double(), position[:, 1:].double()
        corner = own[:, :2] + (centre - scale + 1) / 2 * own[:, 2:]
        return torch.cat([corner, (scale * own[:, 2:]).expand(-1, 2)], dim=1)

    # Believe.

    def positions(self, trace: Trace) -> Float[Tensor, "fixation 3"]:
        """Return the positional encodings of all glimpses, (a^s, a^x, a^y): without a gradient."""
        root = np.array([(r.x, r.y, r.width) for r in trace.roots]).reshape(-1, 3)[trace.image]
        scale = trace.region[:, 2] / root[:, 2]
        centre = 2 * (trace.region[:, :2] - root[:, :2]) / root[:, 2:] + scale[:, None] - 1
        found = torch.from_numpy(np.column_stack([scale, centre])).to(trace.device)
        return found.to(next(self.parameters()).dtype)

    def _seen(self, trace: Trace, rows: Ints) -> Tensor:
        """What fusion takes of some glimpses: their features and positional encodings."""
        return torch.cat([trace.vector, self.positions(trace)], dim=1)[torch.from_numpy(rows).to(trace.device)]

    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        """Return the global classifier's logits after ``depth + 1`` glimpses, or as many as there were."""
        logits = self.classify.weight.new_zeros(trace.images, self.classify.out_features)
        for image, rows in chains_by_length(trace, depth):
            own: Tensor = self.classify(self.fusion(self._seen(trace, rows)))
            logits = logits.index_copy(0, torch.from_numpy(image).to(trace.device), own)
        return logits

    def patches(self, images: Sequence[Image], trace: Trace) -> Float[Tensor, "fixation channels size size"]:
        size, by_scale = self.encoder.base_resolution, self.config.by_scale
        sampler = GlimpseSampler(images, size, trace.device, by_scale=by_scale)
        found, errors = sampler(trace.image, torch.from_numpy(trace.region).to(trace.device))
        for error in errors.values():
            raise error
        return found

    def nodes(self, trace: Trace, image: int) -> tuple[Node, ...]:
        return chain_nodes(trace, image, self.encoder.base_resolution)

    def contributions(self, trace: Trace, image: int, depth: int, label: int) -> list[float | None]:
        """Each glimpse after the first is left out of the attention by turns; where the others lie is held fixed."""

        def log_probability(rows: Ints) -> float:
            logits = self.classify(self.fusion(self._seen(trace, rows)[None]))
            return float(torch.log_softmax(logits.double(), dim=1)[0, label])

        return chain_contributions(trace, image, depth, log_probability)

    def macs(self, trace: Trace) -> list[int]:
        """Encoder, fusion of all glimpses so far, the linear layers; products of attention weights are not counted."""
        if self._macs is None:
            encoder, weight = self.encoder, self.classify.weight
            side = encoder.base_resolution
            glimpse = count_macs(encoder, weight.new_zeros(1, encoder.channels, side, side))
            row = count_macs(self.fusion, weight.new_zeros(1, 1, weight.shape[1]))
            self._macs = [glimpse + weight.numel() + self.locate.weight.numel(), row]
        glimpse, row = self._macs
        counts = np.bincount(trace.image, minlength=trace.images).tolist()
        return [n * glimpse + row * n * (n + 1) // 2 for n in counts]


class GlimpseLoss(Objective):
    """The total loss (6): both classifiers, after every glimpse."""

    def __init__(self, config: MgnetConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self,
        model: Any,
        images: Images,
        labels: Tensor,
        generator: Generators,
        progress: float = 1.0,
    ) -> tuple[Tensor, Metrics, Trace]:
        assert isinstance(model, Mgnet)
        trace = model.look(images, Settings(select="all", depth=self.config.max_depth))
        alive = torch.from_numpy(np.flatnonzero(trace.alive)).to(trace.device)
        target = labels.to(trace.device)[alive]
        logits = [model.believe(trace, depth)[alive] for depth in range(self.config.glimpses)]
        values = torch.stack([self.criterion(each, target) for each in logits], dim=1).mean(1)
        loss = -(1 - self.config.alpha if self.config.glimpses > 1 else 1.0) * batch_mean(values)
        rows = chains(trace, self.config.max_depth)[1]
        later = torch.from_numpy(rows[:, 1:]).to(trace.device)
        if later.numel() and self.config.alpha:
            judged = [self.criterion(model.judge(trace.vector[column]), target) for column in later.T]
            loss = loss - self.config.alpha * batch_mean(torch.stack(judged, dim=1).mean(1))
        final = log_likelihood(logits[-1], target).detach()
        if self.config.small_regions:
            well = (-final < WELL).to(final)
            loss = loss + self.config.small_regions * batch_mean(well * model.excess(trace, rows).square().sum(1))
        correct = (logits[-1].argmax(1) == target).double().mean()
        return loss, {"loss": -float(final.mean()), "accuracy": float(correct)}, trace


METHOD = Method(
    name="mgnet",
    paper="Multi-Glimpse Network",
    Config=MgnetConfig,
    supports=frozenset({"cells", "budget", "exit"}),
    encoders=None,
    build=Mgnet,
    stages=lambda config: [Stage("glimpses", config.max_depth, GlimpseLoss(config))],
)
