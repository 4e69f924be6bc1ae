"""A frozen encoder's vectors: the same as encoding again, and nothing encoded twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyrtrav.colours import Colours
from pyrtrav.encoders import build_encoder
from pyrtrav.encoders.base import Encoding
from pyrtrav.errors import ConfigError
from pyrtrav.methods.topdown import TopDown, TopDownConfig
from pyrtrav.pyramid import Pyramid, open_pyramid
from pyrtrav.pyramid.base import shared_cache
from pyrtrav.sampling import Image, PatchSampler
from pyrtrav.selection import Bools, Floats, Ints, Settings
from pyrtrav.trace import Trace
from pyrtrav.training.augment import View
from pyrtrav.training.vector_cache import VectorCache, digest_of
from tests.samples import TISSUE
from tests.small import SmallEncoder, random_image

PATHS = sorted((TISSUE / "train").glob("*/*.tif"))[:3]


def frozen(seed: int = 0) -> SmallEncoder:
    torch.manual_seed(seed)
    return SmallEncoder().requires_grad_(False).eval()


class Reader:
    """Reads and encodes what it is asked for, and remembers how much."""

    def __init__(self, encoder: SmallEncoder, images: list[Image], image: Ints, region: Floats) -> None:
        self.encoder, self.image, self.region = encoder, image, region
        self.sampler = PatchSampler(images, 4)
        self.counts: list[int] = []
        self.unreadable: set[int] = set()

    def __call__(self, positions: Ints) -> tuple[Encoding, Bools]:
        patches, _ = self.sampler(self.image[positions], self.region[positions])
        self.counts.append(len(positions))
        good = np.array([number not in self.unreadable for number in self.image[positions].tolist()])
        return self.encoder(patches.float() / 255), good


def looks(images: list[Image], seed: int, count: int = 20) -> tuple[Ints, Floats]:
    """Random places; about half of them on a coarse lattice, so that they come again."""
    random = np.random.default_rng(seed)
    image = random.integers(0, len(images), count)
    corner = random.integers(0, 3, (count, 2)) * 16.0
    return image, np.concatenate([corner, np.full((count, 2), 32.0)], axis=1)


def plain(reader: Reader) -> Encoding:
    return reader(np.arange(len(reader.image)))[0]


def same(one: Encoding, other: Encoding) -> None:
    torch.testing.assert_close(one.vector, other.vector, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.map, other.map, rtol=1e-5, atol=1e-6)


@pytest.fixture
def pyramids() -> list[Pyramid]:
    return [open_pyramid(path, channels=1) for path in PATHS]


def test_it_gives_what_the_encoder_gives_and_encodes_nothing_twice(pyramids: list[Pyramid]) -> None:
    encoder = frozen()
    cache = VectorCache(encoder)
    seen: set[tuple[object, ...]] = set()
    for seed in (0, 1, 2, 0, 1):
        image, region = looks(list(pyramids), seed)
        reader = Reader(encoder, list(pyramids), image, region)
        before = cache.encoded
        same(cache(pyramids, image, region, reader), plain(reader))
        places = set(zip(image.tolist(), map(tuple, region.tolist()), strict=True))
        assert cache.encoded - before == len(places - seen)
        seen |= places
    assert (cache.asked, cache.encoded) == (100, len(seen))


def test_an_image_that_is_opened_again_is_known(pyramids: list[Pyramid]) -> None:
    encoder = frozen()
    cache = VectorCache(encoder)
    image, region = looks(list(pyramids), 0)
    cache(pyramids, image, region, Reader(encoder, list(pyramids), image, region))
    for pyramid in pyramids:
        pyramid.close()
    again = [open_pyramid(path, channels=1) for path in PATHS]
    reader = Reader(encoder, list(again), image, region)
    cache(again, image, region, reader)
    assert reader.counts == []


def test_a_file_that_was_written_anew_is_another(tmp_path: Path) -> None:
    encoder, path = frozen(), tmp_path / "a.tif"
    cache = VectorCache(encoder)
    image, region = np.zeros(1, np.int64), np.array([[0.0, 0, 32, 32]])
    found = []
    for source in PATHS[:2]:
        path.write_bytes(source.read_bytes())
        with open_pyramid(path, channels=1) as pyramid:
            reader = Reader(encoder, [pyramid], image, region)
            found.append(cache([pyramid], image, region, reader))
            same(found[-1], plain(reader))
    assert cache.encoded == 2
    assert not torch.allclose(found[0].vector, found[1].vector)


def test_turns_are_kept_apart_and_colours_are_not_kept(pyramids: list[Pyramid]) -> None:
    encoder = frozen()
    cache = VectorCache(encoder)
    views: list[Image] = [View(pyramids[0], 4, turns, mirror) for turns in range(4) for mirror in (False, True)]
    image = np.arange(8)
    region = np.tile(np.array([[16.0, 0, 32, 32]]), (8, 1))
    for _ in range(2):
        reader = Reader(encoder, views, image, region)
        same(cache(views, image, region, reader), plain(reader))
    assert cache.encoded == 8
    painted: list[Image] = [View(pyramids[0], 4, 0, False, Colours(value=np.array([[0.5, 0.1]])))]
    for count in (1, 2):
        reader = Reader(encoder, painted, image[:1], region[:1])
        cache(painted, image[:1], region[:1], reader)
        assert cache.encoded == 8 + count


def test_arrays_are_not_kept() -> None:
    encoder, array = frozen(), random_image(0)
    cache = VectorCache(encoder)
    image, region = np.zeros(2, np.int64), np.array([[0.0, 0, 8, 8], [4.0, 0, 8, 8]])
    for count in (2, 4):
        reader = Reader(encoder, [array], image, region)
        same(cache([array], image, region, reader), plain(reader))
        assert cache.encoded == count
    assert cache.nbytes == 0


def test_images_that_failed_are_not_kept(pyramids: list[Pyramid]) -> None:
    encoder = frozen()
    cache = VectorCache(encoder)
    image, region = np.array([0, 1, 0, 1]), looks(list(pyramids), 3, 4)[1] + np.arange(4)[:, None]
    reader = Reader(encoder, list(pyramids), image, region)
    reader.unreadable = {1}
    cache(pyramids, image, region, reader)
    reader.unreadable = set()
    same(cache(pyramids, image, region, reader), plain(reader))
    assert reader.counts[:2] == [4, 2]


def test_the_bound_holds(pyramids: list[Pyramid]) -> None:
    encoder = frozen()
    one = 4 * (5 + 5 * 4)
    cache = VectorCache(encoder, max_bytes=10 * one)
    for seed in range(4):
        image, region = looks(list(pyramids), seed)
        reader = Reader(encoder, list(pyramids), image, region)
        same(cache(pyramids, image, region, reader), plain(reader))
        assert 0 < cache.nbytes <= 10 * one
    none = VectorCache(encoder, max_bytes=0)
    same(none(pyramids, image, region, reader), plain(reader))
    assert none.nbytes == 0


def test_other_weights_are_another_encoder(pyramids: list[Pyramid]) -> None:
    encoder = frozen()
    cache = VectorCache(encoder)
    image, region = looks(list(pyramids), 0)
    reader = Reader(encoder, list(pyramids), image, region)
    cache(pyramids, image, region, reader)
    asked = cache.encoded
    encoder.load_state_dict({name: value.clone() for name, value in encoder.state_dict().items()})
    cache(pyramids, image, region, reader)
    assert cache.encoded == asked, "the same weights again are the same encoder"
    encoder.load_state_dict(frozen(1).state_dict())
    same(cache(pyramids, image, region, reader), plain(reader))
    assert cache.encoded == 2 * asked


def test_the_digest_tells_layers_and_weights_apart() -> None:
    def seeded(size: int) -> SmallEncoder:
        torch.manual_seed(0)
        return SmallEncoder(size)

    moved = seeded(5)
    with torch.no_grad():
        moved.conv.bias[0] += 1e-7
    half = seeded(5).to(torch.bfloat16)
    digests = [digest_of(encoder) for encoder in (seeded(5), seeded(6), moved, half, frozen(1))]
    assert len(set(digests)) == 5
    assert digest_of(seeded(5)) == digests[0]


def test_a_traversal_that_remembers_is_the_same_traversal(pyramids: list[Pyramid]) -> None:
    """Losses and gradients of everything behind the encoder, too; the second time nothing is read."""
    torch.manual_seed(0)
    model = TopDown(TopDownConfig(max_depth=2, c_t=6.0), frozen(), 2)
    images = [pyramid for pyramid in pyramids for _ in range(2)]

    def run() -> tuple[Trace, list[Tensor]]:
        trace = model.look(images, Settings("sample", depth=2, encode_batch=16), torch.Generator().manual_seed(0))
        loss = model.believe(trace, 2).square().sum() + trace.decision_log_prob(2).sum()
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return trace, list(torch.autograd.grad(loss, learned))

    expected, gradients = run()
    model.traversal.memory = cache = VectorCache(model.encoder)
    for decoded in (True, False):
        shared_cache().clear()
        before = sum(pyramid.cost.tiles_decoded for pyramid in pyramids)
        trace, same_gradients = run()
        assert (sum(pyramid.cost.tiles_decoded for pyramid in pyramids) > before) == decoded
        np.testing.assert_array_equal(trace.region, expected.region)
        torch.testing.assert_close(trace.vector, expected.vector, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(same_gradients, gradients, rtol=1e-4, atol=1e-5)
    distinct = {
        (pyramids.index(images[i]), *region) for i, region in zip(trace.image, trace.region.tolist(), strict=True)
    }
    assert (cache.asked, cache.encoded) == (2 * len(distinct), len(distinct))


def test_what_is_not_frozen_is_refused() -> None:
    encoder = SmallEncoder()
    with pytest.raises(ConfigError, match="only a frozen encoder's vectors can be kept"):
        VectorCache(encoder)
    encoder.requires_grad_(False)
    encoder.drop = nn.Dropout(0.5)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="drops features at random"):
        VectorCache(encoder)
    VectorCache(encoder.eval())
    batches = build_encoder("multires", norm="batch").requires_grad_(False)
    with pytest.raises(ConfigError, match="normalises over batches"):
        VectorCache(batches)
    VectorCache(batches.eval())
