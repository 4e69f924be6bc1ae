"""Multiple instance learning: every tile of one depth, pooled by gated attention.

Source: "Attention-based deep multiple instance learning", Ilse, Tomczak, Welling, ICML 2018. Over tiles of slides it is
what most of computational pathology does, with or without a pretrained encoder.

    paper                               here
    bag, instance x_k                   image, tile: a region of side root / 2^depth
    h_k, of length M                    the encoder's ``vector`` (of ``hidden`` numbers after the layer of that name)
    V, U, w; L                          ``GatedAttention``; ``attention_size``
    a_k                                 attention weight: a node's ``score``
    z                                   ``Mil.pool``

Equations implemented: (7), and (9) for its weights. (8) is (9) without its gate.

Differs from the paper:
1. Any number of classes: a linear layer and softmax rather than the Bernoulli of one logit.
2. Inference streams all tiles through the encoder and keeps only their vectors: 2 KB a tile for 512 numbers. It has no
   budget and is not cut at ``max_fixations``: a weight says something only where every tile has been seen.
3. A training step takes at most ``tiles`` tiles an image, drawn anew each time, as is done with slides; the gradient
   over those is exact.
4. Tiles without image area are none; those of mere background may be left out (``skip_background``), by a rule at
   the thumbnail's scale.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pyrtrav.config import check_range
from pyrtrav.draws import Generators, Purpose, own_draws
from pyrtrav.encoders.base import Encoder, count_macs, init_xavier
from pyrtrav.errors import PyramidError
from pyrtrav.geometry import Region, halvings
from pyrtrav.methods.base import Method, Metrics, Model, Stage
from pyrtrav.methods.cross_entropy import CrossEntropy
from pyrtrav.sampling import Image, make_sampler, read_ahead, root_of
from pyrtrav.selection import Settings
from pyrtrav.tiling import Tiles, background_share, tiles_of, without_background
from pyrtrav.trace import Trace
from pyrtrav.tree import Node


@dataclass(frozen=True)
class MilConfig:
    """How a model of attention over all tiles is made and trained."""

    depth: int = 2
    """Halvings from the whole image to a tile, so up to 4^depth tiles; an image that has fewer gets larger tiles."""
    tiles: int | None = 256
    """Tiles of an image that a training step takes at most, at random; None takes all."""
    skip_background: float | None = None
    """Leave out tiles with at least this share (above 0, at most 1) of near-background pixels on a thumbnail; None
    looks at all. 0.95 leaves out glass; images with a background that is not the file's own keep everything."""
    attention_size: int = 128
    """Hidden units of the attention (L)."""
    hidden: int = 0
    """Units of a layer between encoder and attention, which adapts a frozen encoder's vectors; 0 has none."""
    dropout: float = 0.0
    """Share of the vector's numbers set to zero in training, before attention."""
    train_batch: int = 256
    """Tiles encoded at once in training. A step with more of them encodes them again for the gradient, so that memory
    does not grow with the number of tiles."""

    def __post_init__(self) -> None:
        check_range(self, "depth", "hidden", least=0)
        check_range(self, "attention_size", "train_batch", "tiles", least=1)
        check_range(self, "skip_background", above=0, most=1)
        check_range(self, "dropout", least=0, below=1)


class GatedAttention(nn.Module):
    """The exponent of (9): w . (tanh(V h) * sigmoid(U h))."""

    def __init__(self, size: int, units: int) -> None:
        super().__init__()
        self.content = nn.Linear(size, units, bias=False)
        self.gate = nn.Linear(size, units, bias=False)
        self.weigh = nn.Linear(units, 1, bias=False)
        init_xavier(self)

    def forward(self, vector: Float[Tensor, "tile channel"]) -> Float[Tensor, " tile"]:
        """Return a logit for every tile."""
        logit: Tensor = self.weigh(torch.tanh(self.content(vector)) * torch.sigmoid(self.gate(vector)))
        return logit[:, 0]


def softmax_by_image(logit: Float[Tensor, " tile"], image: Int[Tensor, " tile"], images: int) -> Float[Tensor, " tile"]:
    """Return weights that sum to one over the tiles of each image."""
    lowest = torch.full((images,), -torch.inf, dtype=logit.dtype, device=logit.device)
    # Taking the largest away changes no weight and no gradient.
    largest = lowest.scatter_reduce(0, image, logit.detach(), "amax")
    weight = torch.exp(logit - largest[image])
    total = torch.zeros(images, dtype=logit.dtype, device=logit.device).index_add(0, image, weight)
    return weight / total[image]


class Mil(Model):
    """An encoder over all tiles of one depth, gated attention, and a linear classifier."""

    max_depth = 0

    def __init__(self, config: MilConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        size = config.hidden or encoder.vector_size
        self.adapt = nn.Sequential(nn.Linear(encoder.vector_size, size), nn.ReLU()) if config.hidden else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.attention = GatedAttention(size, config.attention_size)
        self.classify = nn.Linear(size, classes)
        for module in (self.adapt, self.classify):
            init_xavier(module)
        self._macs: tuple[int, int] | None = None

    def depth_of(self, image: Image, settings: Settings) -> int:
        """There is one prediction, whatever the depth of the tiles."""
        return 0

    def tile_depth(self, root: Region) -> int:
        """Depth of the tiles of an image: never upsampled."""
        return min(self.config.depth, halvings(root, self.encoder.base_resolution))

    # Look.

    def look(self, images: Sequence[Image], settings: Settings, generator: Generators | None = None) -> Trace:
        return self._look(images, settings.encode_batch, None, None)

    def look_at_some(self, images: Sequence[Image], generator: Generators | None) -> Trace:
        """Look at no more than ``tiles`` tiles of each image, drawn at random: a training step's."""
        return self._look(images, self.config.train_batch, self.config.tiles, generator)

    def _look(self, images: Sequence[Image], count: int, most: int | None, generator: Generators | None) -> Trace:
        """Encode the tiles of all images, ``count`` at a time."""
        device = next(self.parameters()).device
        base = self.encoder.base_resolution
        trace = Trace([root_of(image, base) for image in images], device)
        chosen = [self._choose(trace, number, image, most, generator) for number, image in enumerate(images)]
        image = np.repeat(np.arange(len(images)), [len(tiles.row) for tiles in chosen])
        column, row, region = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        sampler = make_sampler(images, base, device)
        recompute = len(image) > count and torch.is_grad_enabled() and _learns(self.encoder)
        dtype = next(self.parameters()).dtype
        vectors = [torch.zeros(0, self.encoder.vector_size, device=device, dtype=dtype)]
        for patches in read_ahead(sampler, trace, image, region, count, dtype):
            begun = time.perf_counter()
            encoded = checkpoint(self._encode, patches, use_reentrant=False) if recompute else self._encode(patches)
            vectors.append(encoded)
            trace.seconds["encode"] += time.perf_counter() - begun
        keep = np.flatnonzero(trace.alive[image])
        vector = torch.cat(vectors)
        if len(keep) < len(image):
            vector = vector[torch.from_numpy(keep).to(device)]
        depth = np.array([self.tile_depth(root) for root in trace.roots], np.int64)[image[keep]]
        trace.add_fixations(image[keep], depth, 0, column[keep], row[keep], region[keep], vector)
        return trace

    def _choose(self, trace: Trace, number: int, image: Image, most: int | None, generator: Generators | None) -> Tiles:
        """The tiles of one image to look at; none of an image that cannot be read."""
        root = trace.roots[number]
        depth = self.tile_depth(root)
        tiles = tiles_of(image.bounds, root, depth)
        if self.config.skip_background is not None:
            begun = time.perf_counter()
            try:
                share = background_share(image, root, depth)
            except PyramidError as error:
                trace.errors[number] = error
                return tiles.take(np.zeros(0, np.int64))
            finally:
                trace.seconds["read"] += time.perf_counter() - begun
            tiles = without_background(tiles, share, self.config.skip_background)
        if most is None or len(tiles.row) <= most:
            return tiles
        drawn = own_draws(generator, number, trace.images, len(tiles.row), Purpose.TILES)
        return tiles.take(np.sort(np.argsort(drawn)[:most]))

    def _encode(self, patches: Tensor) -> Tensor:
        vector: Tensor = self.encoder(patches).vector
        return vector

    # Believe.

    def pool(
        self, vector: Float[Tensor, "tile channel"], image: Int[Tensor, " tile"], images: int
    ) -> tuple[Float[Tensor, "image size"], Float[Tensor, " tile"]]:
        """Return the weighted mean (7) of the tiles of each image, zeros where it has none, and their weights (9)."""
        instances = self.dropout(self.adapt(vector))
        weight = softmax_by_image(self.attention(instances), image, images)
        zeros = torch.zeros(images, instances.shape[1], dtype=instances.dtype, device=instances.device)
        return zeros.index_add(0, image, weight[:, None] * instances), weight

    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        pooled, _ = self.pool(trace.vector, torch.from_numpy(trace.image).to(trace.device), trace.images)
        alive = torch.from_numpy(trace.alive).to(trace.device)
        logits: Tensor = self.classify(pooled)
        return logits * alive[:, None]

    def nodes(self, trace: Trace, image: int) -> tuple[Node, ...]:
        """Return the tiles of one image; none has a parent, and their scores sum to one."""
        own = trace.fixations_of(image)
        index = torch.from_numpy(own).to(trace.device)
        with torch.inference_mode():
            weight = self.pool(trace.vector[index], torch.zeros_like(index), 1)[1].double().cpu().numpy()
        base = self.encoder.base_resolution
        return tuple(
            Node(i, (), int(trace.depth[at]), 0, Region(*region), region[2] / base, float(weight[i]), None, ())
            for i, (at, region) in enumerate(zip(own, trace.region[own].tolist(), strict=True))
        )

    def contributions(self, trace: Trace, image: int, depth: int, label: int) -> list[float | None]:
        """Each tile's instance is zero in the weighted mean (7) by turns; the weights are held fixed."""
        index = torch.from_numpy(trace.fixations_of(image)).to(trace.device)
        pooled, weight = self.pool(trace.vector[index], torch.zeros_like(index), 1)
        without = pooled - weight[:, None] * self.adapt(trace.vector[index])
        whole, less = (torch.log_softmax(self.classify(part).double(), dim=1)[:, label] for part in (pooled, without))
        return [float(value) for value in whole - less]

    def macs(self, trace: Trace) -> list[int]:
        if self._macs is None:
            encoder, weight = self.encoder, self.classify.weight
            side = encoder.base_resolution
            only = torch.zeros(1, dtype=torch.int64, device=weight.device)
            tile = count_macs(encoder, weight.new_zeros(1, encoder.channels, side, side))
            tile += count_macs(self.pool, weight.new_zeros(1, encoder.vector_size), only, 1)
            self._macs = tile, weight.numel()
        tile, classify = self._macs
        return [int(n) * tile + classify for n in np.bincount(trace.image, minlength=trace.images)]


def _learns(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


class BagCrossEntropy(CrossEntropy):
    """The negative log-likelihood of the labels, given some of the images' tiles."""

    def look(self, model: Model, images: Sequence[Image], generator: Generators) -> Trace:
        assert isinstance(model, Mil)
        return model.look_at_some(images, generator)

    def forward(
        self,
        model: Model,
        images: Sequence[Image],
        labels: Tensor,
        generator: Generators,
        progress: float = 1.0,
    ) -> tuple[Tensor, Metrics, Trace]:
        loss, metrics, trace = super().forward(model, images, labels, generator, progress)
        return loss, metrics | {"tiles": len(trace.image) / max(int(trace.alive.sum()), 1)}, trace


METHOD = Method(
    name="mil",
    paper="Attention-based deep multiple instance learning",
    Config=MilConfig,
    supports=frozenset(),
    encoders=None,
    build=Mil,
    stages=lambda config: [Stage("all tiles", 0, BagCrossEntropy())],
)
