"""The top-down model: encoder, location, aggregation, merging and classification modules."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.draws import Generators
from pyrtrav.encoders.base import Encoder, Encoding, count_macs, init_xavier
from pyrtrav.encoders.paper import LEAKY_SLOPE
from pyrtrav.methods.base import Model
from pyrtrav.methods.topdown.config import TopDownConfig
from pyrtrav.methods.topdown.contribution import contributions
from pyrtrav.methods.topdown.location import LocalLocation, Location
from pyrtrav.sampling import Image, Images
from pyrtrav.selection import Ints, Settings
from pyrtrav.trace import Trace, take_rows
from pyrtrav.traversal import Policy, Traversal


class TopDown(Model):
    """Encoder, location, aggregation, merging and classification modules."""

    def __init__(self, config: TopDownConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config = config
        self.max_depth, self.grid_cells = config.max_depth, config.cells
        grid, size = config.grid, encoder.vector_size
        start = config.initial_probability
        if start is None:
            start = config.even_probability(max(config.max_depth, 1)) if config.max_depth else 0.5
        kind = LocalLocation if config.location == "local" else Location
        location = kind(encoder.map_channels, encoder.map_size, grid, min(max(start, 0.01), 0.99))
        self.traversal = Traversal(encoder, location, config.finest_mpp, in_parent=config.context == "parent")
        self.looks_alone = not self.traversal.in_parent
        self.aggregate = nn.Conv2d(size, size, grid.cells)
        self.merge = nn.Linear(2 * size, size)
        self.classify = nn.Linear(size, classes)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)
        for module in (self.aggregate, self.merge, self.classify):
            init_xavier(module)

    def __setattr__(self, name: str, value: Any) -> None:
        # A module that is assigned goes past a property's setter.
        if name == "encoder":
            self.traversal.encoder, self._macs = value, None
        else:
            super().__setattr__(name, value)

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        return self.traversal.encoder

    @property
    def location(self) -> Policy:
        return self.traversal.policy

    def policy_weights(self) -> list[nn.Parameter]:
        return list(self.location.parameters())

    def look(self, images: Images, settings: Settings, generator: Generators | None = None) -> Trace:
        def leave(trace: Trace, depth: int, depths: Ints) -> None:
            self.let_leave(trace, depth, settings, depths)

        trace: Trace = self.traversal(images, settings, generator, leave)
        return trace

    def depth_of(self, image: Image, settings: Settings) -> int:
        return self.traversal.depth_of(image, settings)

    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        """Equation (7) from the bottom up, then the classification module; a part of an image says nothing of it."""
        values = self.merged(trace, depth)
        glances = np.flatnonzero((trace.depth == 0) & trace.alive[trace.image])
        device = values.device
        logits: Tensor = self.classify(values[torch.from_numpy(glances).to(device)])
        full = torch.zeros(trace.images, logits.shape[1], dtype=logits.dtype, device=device)
        return full.index_copy(0, torch.from_numpy(trace.image[glances]).to(device), logits)

    def merged(self, trace: Trace, depth: int) -> Float[Tensor, "fixation channel"]:
        """V'_n of every fixation in a run that stops at ``depth``: equation (7)."""
        values = trace.vector
        on = np.flatnonzero(trace.on & (trace.depth[trace.parent] < depth))
        for level in reversed(range(depth)):
            edges = on[trace.depth[trace.parent[on]] == level]
            if len(edges):
                parents, grids = self.grids(trace, values, edges)
                index = torch.from_numpy(parents).to(values.device)
                values = values.index_copy(0, index, self.fuse(values[index], grids))
        return values

    def grids(self, trace: Trace, values: Tensor, edges: Ints) -> tuple[Ints, Float[Tensor, "parent cell channel"]]:
        """Return the parents of the edges, in order, and what their grids hold: zero vectors where no edge is."""
        cells = self.config.cells**2
        parents, local = np.unique(trace.parent[edges], return_inverse=True)
        slots = torch.from_numpy(local * cells + trace.cell[edges]).to(values.device)
        children = torch.from_numpy(trace.child[edges]).to(values.device)
        grids = values.new_zeros(len(parents) * cells, values.shape[1])
        grids = grids.index_copy(0, slots, take_rows(values, children))
        return parents, grids.view(len(parents), cells, -1)

    def fuse(
        self, own: Float[Tensor, "parent channel"], grids: Float[Tensor, "parent cell channel"]
    ) -> Float[Tensor, "parent channel"]:
        """V'_n from V_n and the grid of V'_m: one application of (7)."""
        cells = self.config.cells
        square = grids.view(len(grids), cells, cells, -1).permute(0, 3, 1, 2)
        fine = self.activation(self.aggregate(square)).flatten(1)
        fused: Tensor = self.activation(self.merge(torch.cat([own, fine], dim=1)))
        return fused

    def contributions(self, trace: Trace, image: int, depth: int, label: int) -> list[float | None]:
        return list(contributions(self, trace, image, depth, label))

    def module_macs(self) -> dict[str, int]:
        """Multiply-accumulates of one application of each module."""
        if self._macs is None:
            encoder, size, cells = self.encoder, self.encoder.vector_size, self.config.cells
            device = next(self.parameters()).device
            patch = torch.zeros(1, encoder.channels, encoder.base_resolution, encoder.base_resolution, device=device)
            vector = torch.zeros(1, size, device=device)
            map_ = torch.zeros(1, encoder.map_channels, *encoder.map_size, device=device)
            around = torch.cat([patch, patch[:, :1]], 1) if self.traversal.in_parent else None
            self._macs = {
                "encoder": count_macs(encoder, patch, around),
                "location": count_macs(self.location, Encoding(vector, map_)),
                "aggregation": count_macs(self.aggregate, torch.zeros(1, size, cells, cells, device=device)),
                "merging": count_macs(self.merge, torch.zeros(1, 2 * size, device=device)),
                "classification": count_macs(self.classify, vector),
            }
        found: dict[str, int] = self._macs
        return found

    def macs(self, trace: Trace) -> list[int]:
        cost = self.module_macs()
        fixations = np.bincount(trace.image, minlength=trace.images)
        located = np.bincount(trace.image[np.unique(trace.parent)], minlength=trace.images)
        parents = np.unique(trace.parent[trace.on])
        beliefs, times = np.ones(trace.images, np.int64), np.ones(len(parents), np.int64)
        if trace.judged:
            # A belief after each depth merges all fixations above it again.
            np.maximum.at(beliefs, trace.image, trace.depth + 1)
            times = beliefs[trace.image[parents]] - 1 - trace.depth[parents]
        merged = np.bincount(trace.image[parents], weights=times, minlength=trace.images).astype(np.int64)
        total = (
            fixations * cost["encoder"]
            + located * cost["location"]
            + merged * (cost["aggregation"] + cost["merging"])
            + beliefs * cost["classification"]
        )
        return [int(n) for n in total]
