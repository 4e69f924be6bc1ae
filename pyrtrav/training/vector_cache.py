"""What a frozen encoder has seen is kept: the same place of the same image is read and encoded once, not every epoch.

A key is the SHA-256 of the encoder, the state of the file with the rule that makes its pixels, the turn, and the
region. A view with colours of its own is never kept: its draws do not come again. With ``turn`` there are eight
versions of every place, so a run over few epochs gains little; without turns and jitter the second epoch reads only
where the policy has not looked before.

Simplified: what is kept is what the first batch made of a patch. Another batch may differ in the last bits, so a run
that was resumed equals an uninterrupted one up to those. A file that changes while it is open is noticed when it is
read, hence not where all that is asked for is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrtrav.encoders.base import Encoder, Encoding
from pyrtrav.encoders.normalisation import BatchNorm
from pyrtrav.errors import ConfigError
from pyrtrav.methods import Model
from pyrtrav.pyramid.base import Pyramid
from pyrtrav.pyramid.cache import TileCache
from pyrtrav.sampling import Image
from pyrtrav.selection import Bools, Floats, Ints
from pyrtrav.training.augment import View
from pyrtrav.traversal import Encode, Traversal

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class _Kept(NamedTuple):
    vector: Tensor
    map: Tensor

    @property
    def nbytes(self) -> int:
        return self.vector.nbytes + self.map.nbytes


class VectorCache:
    """Vectors and maps of one encoder, in memory, bounded in bytes; the least recently used make room."""

    def __init__(self, encoder: Encoder, max_bytes: int = 1 << 30) -> None:
        """
        Raises:
            ConfigError: the encoder is trained, or draws at random.
        """
        self._encoder = encoder
        self._cache: TileCache[_Kept] = TileCache(max_bytes)
        self._versions: tuple[int, ...] = ()
        self._digest = ""
        self.asked = self.encoded = 0
        """Fixations that were asked for, and how many of them had to be encoded."""
        self._check()

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def __call__(self, images: Sequence[Image], image: Ints, region: Floats, encode: Encode) -> Encoding:
        """Return what the encoder makes of fixations; only what is not kept is read and encoded.

        Args:
            image: into ``images``, on the fixation axis.
            region: (fixation, 4), level-0 pixels.
        """
        self._check()
        keys = self._keys(images, image, region)
        first: dict[Hashable, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)  # two pyramids of one file look at the same places
        known = {i: kept for key, i in first.items() if (kept := self._cache.get(key)) is not None}
        missing = [i for i in first.values() if i not in known]
        self.asked, self.encoded = self.asked + len(keys), self.encoded + len(missing)
        parts: list[Encoding] = []
        if missing:
            fresh, good = encode(np.array(missing, np.int64))
            self._keep([keys[i] for i in missing], fresh, good)
            parts.append(fresh)
        if known:
            rows = [torch.stack(tensors) for tensors in zip(*known.values(), strict=True)]
            parts.append(Encoding(*(row.to(next(self._encoder.parameters()).device) for row in rows)))
        row_of = {i: row for row, i in enumerate([*missing, *known])}
        order = torch.tensor([row_of[first[key]] for key in keys])
        vector, map_ = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return Encoding(vector[order.to(vector.device)], map_[order.to(map_.device)])

    def _keys(self, images: Sequence[Image], image: Ints, region: Floats) -> list[Hashable]:
        """On the fixation axis; what cannot be kept has its position, which is no key."""
        states = [state_of(one) for one in images]
        return [
            i if states[number] is None else (self._digest, states[number], tuple(place))
            for i, (number, place) in enumerate(zip(image.tolist(), region.tolist(), strict=True))
        ]

    def _keep(self, keys: Sequence[Hashable], fresh: Encoding, good: Bools) -> None:
        # Rows of their own, or each would hold its whole batch; on the host, whose memory is counted.
        vectors, maps = fresh.vector.detach().cpu(), fresh.map.detach().cpu()
        for row, key in enumerate(keys):
            if good[row] and not isinstance(key, int):
                self._cache.put(key, _Kept(vectors[row].clone(), maps[row].clone()))

    def _check(self) -> None:
        """Weights that were changed in place, as by a checkpoint, are another encoder."""
        versions = tuple(tensor._version for tensor in self._encoder.state_dict(keep_vars=True).values())
        if versions == self._versions:
            return
        if any(parameter.requires_grad for parameter in self._encoder.parameters()):
            raise ConfigError(
                "only a frozen encoder's vectors can be kept; set keep_vectors=0, or take a pretrained encoder as it is"
            )
        if any(isinstance(part, DROPOUTS) and part.training and part.p for part in self._encoder.modules()):
            raise ConfigError(
                "the encoder drops features at random, so that its vectors cannot be kept; set keep_vectors=0"
            )
        if any(isinstance(part, BatchNorm) and part.training for part in self._encoder.modules()):
            raise ConfigError(
                "the encoder normalises over batches: a vector depends on what else is encoded with it, and cannot be "
                "kept; set keep_vectors=0"
            )
        self._versions, self._digest = versions, digest_of(self._encoder)


def keep_vectors(model: Model, max_bytes: int) -> None:
    """Let a model's traversal remember what its frozen encoder has made of places.

    Raises:
        ConfigError: the method has no traversal, sees places in their parents' patches, or trains the encoder.
    """
    traversal = getattr(model, "traversal", None)
    if not isinstance(traversal, Traversal):
        raise ConfigError("keep_vectors is for methods that look where attention goes, such as topdown; leave it at 0")
    if traversal.in_parent:
        raise ConfigError("with context=parent a place's vector depends on how it was reached; set keep_vectors=0")
    traversal.memory = VectorCache(model.encoder, max_bytes)


def state_of(image: object) -> Hashable:
    """Return what tells an image, as it is shown, from any other in this process; None where nothing does."""
    if isinstance(image, View):
        of_file = state_of(image.pyramid)
        if of_file is None or image.colours is not None:
            return None
        return (of_file, image.turns, image.mirror, image.frame.as_tuple())
    return (image.token, 0, False) if isinstance(image, Pyramid) and image.token is not None else None


def digest_of(encoder: Encoder) -> str:
    """Return the SHA-256 of an encoder's layers and weights, in hexadecimal."""
    digest = hashlib.sha256(f"{encoder!r} {encoder.channels} {encoder.base_resolution}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
