"""The ten models of tables 1 to 5, module by module: parameters, and multiply-accumulates by two counters.

"Image classification through top-down image pyramid traversal", appendix A.2. One counter is ours, the other torch's,
which counts two operations for a multiply-accumulate. The convolutions' own figures stand in ``test_encoders``.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pyrtrav.encoders import Baseline, build_encoder, count_macs
from pyrtrav.methods.topdown import TopDown, TopDownConfig
from pyrtrav.pyramid.array import ArrayPyramid
from pyrtrav.selection import Settings
from tests.test_encoders import PAPER, parameters


class Modules(NamedTuple):
    """(parameters, multiply-accumulates) of one application of each module."""

    location: tuple[int, int]
    aggregation: tuple[int, int] = (36928, 36864)
    merging: tuple[int, int] = (8256, 8192)
    classification: tuple[int, int] = (650, 640)


def of_imagenet(location: tuple[int, int]) -> Modules:
    return Modules(location, (590080, 589824), (131328, 131072), (256000, 256000))


M = {
    "mnist-m3": Modules((5193, 5184)),
    "mnist-m2": Modules((28233, 28224)),
    "mnist-m1": Modules((28233, 28224)),
    "imagenet-m2": of_imagenet((36873, 36864)),
    "imagenet-m1": of_imagenet((147465, 147456)),
}
TOTALS = {"mnist-m3": 106771, "mnist-m2": 92883, "mnist-m1": 74707}

# Multiply-accumulates of a baseline: of each convolution per pixel of an image of N x N, and of the three layers.
BL = {
    "mnist-m3": ((288, 4608, 2304), (4096, 4096, 640)),
    "mnist-m2": ((288, 4608), (4096, 4096, 640)),
    "mnist-m1": ((576,), (4096, 4096, 640)),
    "imagenet-m2": ((1728, 18432, 18432, 9216), (65536, 65536, 256000)),
    "imagenet-m1": ((1728, 18432, 18432), (65536, 65536, 256000)),
}
HEADS = {"mnist": (4160, 4160, 650), "imagenet": (65792, 65792, 256000)}

every_model = pytest.mark.parametrize("name", PAPER)


def classes_of(name: str) -> int:
    return 10 if name.startswith("mnist") else 1000


def make(name: str) -> TopDown:
    torch.manual_seed(0)
    return TopDown(TopDownConfig(max_depth=2, c_t=4.0), build_encoder(name), classes_of(name))


def by_torch(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    assert counter.get_total_flops() % 2 == 0
    return int(counter.get_total_flops()) // 2


@every_model
def test_parameters_of_every_module(name: str) -> None:
    model, table = make(name), M[name]
    assert parameters(model.encoder) == sum(PAPER[name][0])
    assert parameters(model.location) == table.location[0]
    assert parameters(model.aggregate) == table.aggregation[0]
    assert parameters(model.merge) == table.merging[0]
    # The tables of ImageNet count no bias for this layer alone, those of MNIST do.
    bias = 0 if name.startswith("mnist") else 1000
    assert parameters(model.classify) == table.classification[0] + bias
    modules = table.location[0] + table.aggregation[0] + table.merging[0] + table.classification[0] + bias
    assert parameters(model) == sum(PAPER[name][0]) + modules
    assert parameters(model) == TOTALS.get(name, parameters(model))


@every_model
def test_multiply_accumulates_of_every_module(name: str) -> None:
    model, table = make(name), M[name]
    encoder, size = model.encoder, model.encoder.vector_size
    patch = torch.zeros(1, encoder.channels, encoder.base_resolution, encoder.base_resolution)
    with torch.no_grad():
        encoding = encoder(patch)
    applied = {
        "encoder": lambda: encoder(patch),
        "location": lambda: model.location(encoding),
        "aggregation": lambda: model.aggregate(torch.zeros(1, size, 3, 3)),
        "merging": lambda: model.merge(torch.zeros(1, 2 * size)),
        "classification": lambda: model.classify(encoding.vector),
    }
    wanted = {"encoder": sum(PAPER[name][1]), **{key: pair[1] for key, pair in table._asdict().items()}}
    assert model.module_macs() == wanted
    assert {module: by_torch(run) for module, run in applied.items()} == wanted


@every_model
def test_a_whole_traversal_costs_what_the_tables_add_up_to(name: str) -> None:
    """Two levels, all nine cells: ten patches, one grid."""
    model, table = make(name), M[name]
    side = 2 * model.encoder.base_resolution
    pixels = torch.randint(0, 255, (side, side, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = ArrayPyramid(pixels.numpy(), channels=model.encoder.channels)
    settings = Settings(select="all", depth=1)
    with torch.no_grad():
        trace = model.look([image], settings)
    wanted = 10 * sum(PAPER[name][1]) + sum(macs for _, macs in table)
    assert model.macs(trace) == [wanted]
    assert by_torch(lambda: model.believe(model.look([image], settings), 1)) == wanted


@every_model
def test_parameters_of_every_layer_of_a_baseline(name: str) -> None:
    classes = classes_of(name)
    baseline = Baseline(build_encoder(name), classes, classifier_bias=classes == 10)
    layers = [layer for layer in baseline.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert tuple(map(parameters, layers)) == (*PAPER[name][0], *HEADS[name.split("-")[0]])


@every_model
def test_multiply_accumulates_of_a_baseline(name: str) -> None:
    per_pixel, layers = BL[name]
    side = 64
    wanted = [figure * side**2 for figure in per_pixel]
    if name == "mnist-m3":
        # The table rounds N/4; the second pooling, 3 x 3 without padding, gives 15 of 16.
        wanted[2] = wanted[2] * 15**2 // 16**2
    baseline = Baseline(build_encoder(name), classes_of(name))
    images = torch.zeros(1, baseline.encoder.channels, side, side)
    assert count_macs(baseline, images) == sum(wanted) + sum(layers)
    assert by_torch(lambda: baseline(images)) == sum(wanted) + sum(layers)
