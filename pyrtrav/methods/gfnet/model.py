"""The glance-and-focus model: two encoders, a classifier and a policy."""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrtrav.draws import Generators, Purpose, own_draws
from pyrtrav.encoders.base import Encoder, Encoding, count_macs, init_xavier
from pyrtrav.errors import ConfigError
from pyrtrav.methods.base import Model
from pyrtrav.methods.chain import chain_contributions, chain_nodes, chains_by_length
from pyrtrav.methods.gfnet.classifier import CascadedClassifier, Classifier, RecurrentClassifier
from pyrtrav.methods.gfnet.config import GfnetConfig
from pyrtrav.methods.gfnet.places import Places
from pyrtrav.methods.gfnet.proposal import PatchProposal, Proposed
from pyrtrav.sampling import Image, Images, PatchSampler, StackSampler, make_sampler, read_ahead, root_of
from pyrtrav.selection import Floats, Ints, Settings
from pyrtrav.trace import Trace, take_rows
from pyrtrav.traversal import bytes_read
from pyrtrav.tree import Node


class Rollout(NamedTuple):
    """What the policy saw and did, of images without an error: step by step, each (image, ...)."""

    maps: list[Float[Tensor, "image channel row column"]]
    actions: list[Float[Tensor, "image 2"]]
    """As drawn: outside the range a patch lies at its edge."""

    def only(self, rows: Tensor) -> "Rollout":
        """Return what concerns some of the images."""
        return Rollout([one[rows] for one in self.maps], [one[rows] for one in self.actions])


class Gfnet(Model):
    """Global and local encoder, classifier, and patch proposal."""

    def __init__(self, config: GfnetConfig, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.config, self.encoder, self.max_depth = config, encoder, config.max_depth
        size = encoder.vector_size
        self.local = copy.deepcopy(encoder)
        self.classify: Classifier = (
            RecurrentClassifier(size, config.hidden, classes)
            if config.classifier == "recurrent"
            else CascadedClassifier(size, config.looks, classes)
        )
        self.judge_glance, self.judge_focus = nn.Linear(size, classes), nn.Linear(size, classes)
        for judge in (self.judge_glance, self.judge_focus):
            init_xavier(judge)
        self.propose = PatchProposal(encoder, config.policy_hidden)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "encoder" and "local" in self._modules:
            raise ConfigError("gfnet has two encoders, which are built alike: one alone cannot be replaced")
        super().__setattr__(name, value)

    def policy_weights(self) -> list[nn.Parameter]:
        return list(self.propose.parameters())

    def depth_of(self, image: Image, settings: Settings) -> int:
        return self._last(settings)

    def _last(self, settings: Settings) -> int:
        """The place in the chain of the last look."""
        return min(settings.depth, settings.allowed - 1, self.max_depth)

    # Look.

    def look(self, images: Images, settings: Settings, generator: Generators | None = None) -> Trace:
        return self.follow(images, settings, generator)[0]

    def follow(self, images: Images, settings: Settings, generator: Generators | None = None) -> tuple[Trace, Rollout]:
        """Look, and return what the policy saw and did, too; nothing where others chose the places."""
        device, base = self.judge_glance.weight.device, self.encoder.base_resolution
        trace = Trace([root_of(image, base) for image in images], device)
        sampler, places = make_sampler(images, base, device), Places.of(self.config, images, base)
        last, image = self._last(settings), np.arange(len(images))
        draws = _draws(settings, len(images), last, generator)
        region = np.array([root.as_tuple() for root in trace.roots]).reshape(-1, 4)
        rollout, proposed = Rollout([], []), None
        depths = np.full(len(images), last)
        for step in range(last + 1):
            encoding, read = self._encode(trace, sampler, image, region, step, settings.encode_batch)
            rows = torch.from_numpy(read).to(device)
            image, region, rollout = image[read], region[read], rollout.only(rows)
            zeros = np.zeros(len(image), np.int64)
            trace.add_fixations(image, zeros + step, step, zeros, zeros, region, encoding.vector)
            trace.bytes_read.append(bytes_read(images))
            self.let_leave(trace, step, settings, depths)
            stay = np.flatnonzero(trace.left[image] < 0)
            if step == last or (settings.stop_at is not None and not len(stay)):
                break
            staying = torch.from_numpy(stay).to(device)
            image, rollout, rows = image[stay], rollout.only(staying), rows[staying]
            if settings.select in ("random", "centre"):
                region = places.spread(image, draws[image, step])
                continue
            state = None if proposed is None else proposed.state[rows]
            with torch.no_grad():
                proposed = self.propose(encoding.map[staying], state)
                action = self._act(proposed, draws[image, step])
            rollout.maps.append(encoding.map[staying].detach())
            rollout.actions.append(action)
            region = places.at(image, action.double().cpu().numpy())
        return trace, rollout

    def _act(self, proposed: Proposed, draws: Floats) -> Float[Tensor, "image 2"]:
        """Draw places from the policy's Gaussians; uniform draws of 1/2 give their means."""
        normal = torch.special.ndtri(torch.from_numpy(np.clip(draws, 1e-12, None))).to(proposed.mean)
        action: Tensor = proposed.mean + self.config.deviation * normal
        return action

    def _encode(
        self,
        trace: Trace,
        sampler: PatchSampler | StackSampler,
        image: Ints,
        region: Floats,
        step: int,
        count: int,
    ) -> tuple[Encoding, Ints]:
        """Encode a look at each image; returns this of images that could be read, and which rows these are."""
        encoder, weight = self.local if step else self.encoder, self.judge_glance.weight
        # Training sets how the first one runs.
        encoder.running = self.encoder.running
        vectors = [weight.new_zeros(0, encoder.vector_size)]
        maps = [weight.new_zeros(0, encoder.map_channels, *encoder.map_size)]
        for patches in read_ahead(sampler, trace, image, region, count, weight.dtype):
            with trace.timed("encode"):
                encoding: Encoding = encoder(patches)
            vectors.append(encoding.vector)
            maps.append(encoding.map)
        read = np.flatnonzero(trace.alive[image])
        whole = Encoding(torch.cat(vectors), torch.cat(maps))
        if len(read) == len(image):
            return whole, read
        rows = torch.from_numpy(read).to(weight.device)
        return Encoding(take_rows(whole.vector, rows), take_rows(whole.map, rows)), read

    def encode_looks(
        self, patches: Float[Tensor, "fixation channels size size"], depth: Ints
    ) -> Float[Tensor, "fixation channel"]:
        vectors = patches.new_zeros(len(patches), self.encoder.vector_size)
        for encoder, own in ((self.encoder, depth == 0), (self.local, depth > 0)):
            if own.any():
                rows = torch.from_numpy(np.flatnonzero(own)).to(patches.device)
                vectors = vectors.index_copy(0, rows, encoder(patches[rows]).vector)
        return vectors

    # Believe.

    def seen(self, trace: Trace, rows: Ints) -> Float[Tensor, "image look channel"]:
        """Return the vectors of chains of looks."""
        index = torch.from_numpy(rows).to(trace.device)
        return take_rows(trace.vector, index.flatten()).view(*index.shape, trace.vector.shape[1])

    def judge(self, vectors: Float[Tensor, "image look channel"]) -> Float[Tensor, "image look label"]:
        """Return the logits of each look alone, by its encoder's own classifier."""
        return torch.cat([self.judge_glance(vectors[:, :1]), self.judge_focus(vectors[:, 1:])], dim=1)

    def believe(self, trace: Trace, depth: int) -> Float[Tensor, "image label"]:
        """Return the classifier's logits after ``depth + 1`` looks, or as many as there were."""
        weight = self.judge_glance.weight
        logits = weight.new_zeros(trace.images, weight.shape[0])
        for image, rows in chains_by_length(trace, depth):
            own = self.classify(self.seen(trace, rows))[:, -1]
            logits = logits.index_copy(0, torch.from_numpy(image).to(trace.device), own)
        return logits

    def nodes(self, trace: Trace, image: int) -> tuple[Node, ...]:
        return chain_nodes(trace, image, self.encoder.base_resolution)

    def contributions(self, trace: Trace, image: int, depth: int, label: int) -> list[float | None]:
        """Each look after the glance is skipped by turns; where the others lie is held fixed."""

        def log_probability(rows: Ints) -> float:
            logits = self.classify(self.seen(trace, rows[None]))[0, -1]
            return float(torch.log_softmax(logits.double(), dim=0)[label])

        return chain_contributions(trace, image, depth, log_probability)

    def macs(self, trace: Trace) -> list[int]:
        """Encoders, the classifier after each look, and the policy between looks.

        Also where the policy's places were replaced by random or central ones: those are for comparison.
        """
        if self._macs is None:
            encoder, weight = self.encoder, self.judge_glance.weight
            patch = weight.new_zeros(1, encoder.channels, encoder.base_resolution, encoder.base_resolution)
            self._macs = count_macs(encoder, patch), self.propose.macs()
        encode, propose = self._macs
        counts = np.bincount(trace.image, minlength=trace.images).tolist()
        return [n * encode + max(n - 1, 0) * propose + sum(map(self.classify.macs, range(n))) for n in counts]


def _draws(settings: Settings, images: int, steps: int, generator: Generators | None) -> Floats:
    """Uniforms (image, step, 2) that say where to look; 1/2 where nothing is drawn."""
    if settings.select not in ("sample", "random"):
        return np.full((images, steps, 2), 0.5)
    drawn = [own_draws(generator, image, images, 2 * steps, Purpose.PATCHES) for image in range(images)]
    return np.array(drawn).reshape(images, steps, 2)
