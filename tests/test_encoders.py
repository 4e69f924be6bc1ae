"""Encoders against the paper's tables, and the contract that every encoder keeps."""

import inspect
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from pyrtrav.encoders import (
    ENCODERS,
    Baseline,
    Encoder,
    FullyConnectedHead,
    build_encoder,
    count_macs,
    init_xavier,
)
from pyrtrav.encoders.residual import ResidualBlock
from pyrtrav.errors import ConfigError

# "Image classification through top-down image pyramid traversal", tables 1 to 5, feature extraction modules:
# parameters and multiply-accumulates of every convolution, base resolution, feature map, receptive field of
# the last convolution. Tables 1 and 2 print 56,488 for the first one; 14 * 14 * 3 * 3 * 32 is 56,448.
PAPER = {
    "mnist-m3": ([320, 18496, 36928], [56448, 903168, 331776], 14, (3, 3, 64), 20),
    "mnist-m2": ([320, 18496], [56448, 903168], 14, (7, 7, 64), 8),
    "mnist-m1": ([640], [112896], 14, (7, 7, 64), 3),
    "imagenet-m2": (
        [1792, 73856, 295168, 590080],
        [1769472, 18874368, 18874368, 9437184],
        32,
        (4, 4, 256),
        38,
    ),
    "imagenet-m1": ([1792, 73856, 295168], [1769472, 18874368, 18874368], 32, (8, 8, 256), 18),
}

# Same tables, baseline CNNs: parameters in all.
BASELINES = {
    "mnist-m3": (10, 64714),
    "mnist-m2": (10, 27786),
    "mnist-m1": (10, 9610),
    "imagenet-m2": (1000, 1792 + 73856 + 295168 + 590080 + 65792 + 65792 + 256000),
    "imagenet-m1": (1000, 1792 + 73856 + 295168 + 65792 + 65792 + 256000),
}

# Where an encoder's own size makes for a very large image.
FEW_LAYERS = {"multigrid": {"network": "MG-6", "base_resolution": 32}, "multires": {"blocks": 2}}

every_encoder = pytest.mark.parametrize("name", ENCODERS)
every_paper_encoder = pytest.mark.parametrize("name", PAPER)


class Whole(Encoder):
    """Features that no sliding window makes."""

    def features(self, images: Tensor) -> Tensor:
        return images - images.mean((2, 3), keepdim=True)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def patches_for(encoder: Encoder, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    side = encoder.base_resolution
    return torch.rand(count, encoder.channels, side, side, generator=generator)


class TestPaper:
    @every_paper_encoder
    def test_sizes_are_those_of_the_tables(self, name):
        encoder = build_encoder(name)
        weights, macs, side, (rows, columns, channels), receptive_field = PAPER[name]
        convolutions = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
        assert [parameters(layer) for layer in convolutions] == weights
        assert parameters(encoder) == sum(weights)
        assert count_macs(encoder, patches_for(encoder, 1)) == sum(macs)
        assert encoder.base_resolution == side
        assert (*encoder.map_size, encoder.map_channels, encoder.vector_size) == (
            rows,
            columns,
            channels,
            channels,
        )
        assert encoder.receptive_field == receptive_field

    @every_paper_encoder
    def test_macs_of_every_layer_are_those_of_the_tables(self, name):
        encoder, counted = build_encoder(name), []
        for layer in encoder.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(
                    lambda layer, inputs: counted.append(inputs[0].shape[2:].numel() * layer.weight.numel())
                )
        encoder(patches_for(encoder, 1))
        assert counted == PAPER[name][1]

    @every_paper_encoder
    def test_baseline_has_the_parameters_of_the_tables(self, name):
        classes, total = BASELINES[name]
        baseline = Baseline(build_encoder(name), classes, classifier_bias=classes == 10)
        assert parameters(baseline) == total

    def test_baseline_takes_images_of_any_size(self):
        baseline = Baseline(build_encoder("mnist-m3"), 10)
        assert baseline(torch.rand(2, 1, 56, 41)).shape == (2, 10)

    def test_baseline_macs_grow_with_the_image(self):
        # Table 1: 288 N^2 + 4,608 N^2 + 2,304 N^2 with N/4 rounded up; the second pooling gives 13, not 14.
        baseline = Baseline(build_encoder("mnist-m3"), 10)
        expected = (288 + 4608) * 56**2 + 9 * 64 * 64 * 13**2 + 4096 + 4096 + 640
        assert count_macs(baseline, torch.rand(1, 1, 56, 56)) == expected

    def test_head_macs(self):
        assert count_macs(FullyConnectedHead(64, 10), torch.rand(1, 64)) == 4096 + 4096 + 640

    @pytest.mark.parametrize(
        ("pixel", "name", "expected"),
        [
            (0.0, "mnist-m3", 0.0),
            (1.0, "mnist-m3", 1.0),
            (0.0, "imagenet-m2", -1.0),
            (1.0, "imagenet-m2", 1.0),
        ],
    )
    def test_scaling(self, pixel, name, expected):
        encoder = build_encoder(name)
        assert torch.equal(
            encoder.normalise(torch.full((1, encoder.channels, 2, 2), pixel)),
            torch.full((1, encoder.channels, 2, 2), expected),
        )

    def test_vector_is_the_mean_of_the_map(self):
        encoder = build_encoder("imagenet-m1")
        encoding = encoder(patches_for(encoder))
        assert torch.allclose(encoding.vector, encoding.map.flatten(2).mean(2), atol=1e-6)

    def test_slope_is_an_option(self):
        assert build_encoder("mnist-m1", slope=0.0)(torch.rand(1, 1, 14, 14)).map.min() == 0

    @pytest.mark.parametrize("sizes", [{"channels": 3}, {"base_resolution": 28}])
    def test_architecture_is_fixed(self, sizes):
        with pytest.raises(ConfigError, match="mnist-m3 has 1 channels and base resolution 14"):
            build_encoder("mnist-m3", **sizes)

    def test_its_own_sizes_may_be_named(self):
        assert build_encoder("imagenet-m2", channels=3, base_resolution=32).channels == 3


class TestEveryEncoder:
    @every_encoder
    def test_shapes_are_as_declared(self, name):
        encoder = build_encoder(name)
        vector, map_ = encoder(patches_for(encoder, 3))
        assert vector.shape == (3, encoder.vector_size)
        assert map_.shape == (3, encoder.map_channels, *encoder.map_size)
        assert encoder.mean.shape == encoder.std.shape == (1, encoder.channels, 1, 1)

    @every_encoder
    def test_no_patches_give_no_vectors(self, name):
        encoder = build_encoder(name)
        assert encoder(patches_for(encoder, 0)).vector.shape == (0, encoder.vector_size)

    @every_encoder
    @pytest.mark.parametrize("training", [True, False])
    def test_a_vector_does_not_depend_on_the_batch(self, name, training):
        encoder = build_encoder(name).train(training)
        patches = patches_for(encoder, 3)
        together = encoder(patches)
        for number in range(3):
            alone = encoder(patches[number : number + 1])
            assert torch.allclose(alone.vector[0], together.vector[number], atol=1e-5)
            assert torch.allclose(alone.map[0], together.map[number], atol=1e-5)

    @every_encoder
    def test_gradients_reach_every_weight_and_the_pixels(self, name):
        encoder = build_encoder(name)
        for weight in encoder.parameters():  # zeros of the initialisation stop gradients for one step
            nn.init.normal_(weight, std=0.1)
        patches = patches_for(encoder).requires_grad_()
        encoding = encoder(patches)
        (encoding.vector.square().sum() + encoding.map.sum()).backward()
        assert patches.grad is not None
        assert patches.grad.abs().sum() > 0
        for weight_name, weight in encoder.named_parameters():
            assert weight.grad is not None, weight_name
            assert weight.grad.abs().sum() > 0, weight_name

    @every_encoder
    def test_the_seed_decides_the_weights(self, name):
        states = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            states.append(build_encoder(name).state_dict())
        same, other = (all(torch.equal(states[0][key], state[key]) for key in states[0]) for state in states[1:])
        assert same
        assert not other

    @every_encoder
    def test_state_round_trip(self, name):
        encoder = build_encoder(name, mean=0.3, std=0.2)
        twin = build_encoder(name)
        # Files keep rows and columns in one order, whatever the order in memory.
        stored = load(save({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}))
        twin.load_state_dict(stored)
        patches = patches_for(encoder)
        assert torch.equal(twin(patches).vector, encoder(patches).vector)
        assert torch.equal(twin.mean, encoder.mean)
        assert [p.stride() for p in twin.parameters()] == [p.stride() for p in encoder.parameters()]

    @every_encoder
    def test_wrong_patches_are_named(self, name):
        encoder = build_encoder(name)
        side, channels = encoder.base_resolution, encoder.channels
        with pytest.raises(ConfigError, match=rf"{channels} x {side} x {side} .* got {channels} x 20 x 20"):
            encoder(torch.rand(1, channels, 20, 20))
        with pytest.raises(ConfigError, match=rf"got {4 - channels} x {side} x {side}"):
            encoder(torch.rand(1, 4 - channels, side, side))

    @every_encoder
    def test_a_feature_sees_its_receptive_field_and_no_more(self, name):
        few = FEW_LAYERS.get(name, {})
        encoder = build_encoder(name, slope=1.0) if "slope" in options(name) else build_encoder(name, **few)
        for weight in encoder.parameters():
            nn.init.uniform_(weight, 0.01, 0.02)  # positive: nothing cancels, every ReLU is on
        # A trailing pooling widens what its output sees by less than a stride.
        reach = encoder.receptive_field + encoder.windows[-1].pooling * (encoder.total_stride - 1)
        middle = -(-reach // encoder.total_stride)
        side = 2 * encoder.total_stride * (middle + 1)
        images = torch.rand(1, encoder.channels, side, side, requires_grad=True)
        features = encoder.features(images)
        features[0, :, middle, middle].sum().backward()
        assert images.grad is not None
        seen = images.grad[0].abs().sum(0).sum(0).nonzero().flatten()
        extent = int(seen[-1] - seen[0]) + 1
        # A max pooling passes the gradient to one of its pixels only, so the extent can fall short.
        pools = any(window.pooling for window in encoder.windows)
        assert extent <= reach if pools else extent == reach

    @every_encoder
    def test_strips_with_a_halo_equal_the_whole_image(self, name):
        encoder = build_encoder(name).eval()
        stride = encoder.total_stride
        halo = -(-encoder.receptive_field // stride) * stride
        rows = 2 * stride
        side = 2 * halo + 3 * rows
        image = encoder.normalise(torch.rand(1, encoder.channels, side, 3 * stride))
        top = halo + rows
        with torch.no_grad():
            whole = encoder.features(image)[:, :, top // stride : (top + rows) // stride]
            strip = encoder.features(image[:, :, top - halo : top + rows + halo])
        assert torch.allclose(strip[:, :, halo // stride : (halo + rows) // stride], whole, atol=1e-5)

    @every_encoder
    def test_features_come_every_total_stride(self, name):
        encoder = build_encoder(name)
        side = 8 * encoder.total_stride
        rows = encoder.features(torch.rand(1, encoder.channels, side, side)).shape[2]
        assert 7 <= rows <= 8  # a 3 x 3 pooling loses the last one


class TestResidual:
    def test_default_is_cheap(self):
        encoder = build_encoder("residual")
        assert count_macs(encoder, patches_for(encoder, 1)) < 7e6
        assert encoder.map_size == (4, 4)

    @pytest.mark.parametrize(
        ("options", "map_size", "stride", "receptive_field"),
        [
            ({}, (4, 4), 16, 87),
            ({"base_resolution": 128}, (8, 8), 16, 87),
            ({"channels": 1, "widths": [8, 16], "base_resolution": 28}, (7, 7), 4, 15),
            ({"widths": (8, 16), "blocks": 2}, (16, 16), 4, 31),
        ],
    )
    def test_sizes(self, options, map_size, stride, receptive_field):
        encoder = build_encoder("residual", **options)
        assert encoder(patches_for(encoder)).map.shape[2:] == map_size == encoder.map_size
        assert (encoder.total_stride, encoder.receptive_field) == (stride, receptive_field)

    @pytest.mark.parametrize("base_resolution", [0, 8, 60])
    def test_base_resolution_must_fit_the_stride(self, base_resolution):
        with pytest.raises(ConfigError, match=f"{base_resolution} is no multiple of 16"):
            build_encoder("residual", base_resolution=base_resolution)

    @pytest.mark.parametrize("options", [{"widths": ()}, {"widths": (8, 0)}, {"blocks": 0}])
    def test_widths_and_blocks_must_be_positive(self, options):
        with pytest.raises(ConfigError, match="1 or more"):
            build_encoder("residual", **options)

    def test_a_block_starts_as_its_shortcut(self):
        features = torch.randn(2, 8, 6, 6)
        assert torch.equal(ResidualBlock(8, 8, stride=1)(features), features)
        halved = ResidualBlock(8, 12, stride=2)
        assert torch.equal(halved(features), halved.shortcut(features))


class TestBuilding:
    def test_unknown_name_suggests_the_nearest(self):
        with pytest.raises(ConfigError, match="unknown encoder 'residul'; did you mean 'residual'"):
            build_encoder("residul")

    def test_unknown_option_suggests_the_nearest(self):
        with pytest.raises(ConfigError, match="unknown option 'width' of encoder residual; did you mean 'widths'"):
            build_encoder("residual", width=(1, 2))

    @every_encoder
    def test_every_option_is_a_keyword_with_a_default(self, name):
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options(name).values())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"channels": 2}, "not 2"),
            ({"mean": (0.1, 0.2)}, "mean has 2 values for 3 channels"),
            ({"std": (0.1, 0.0, 0.1)}, "std must be above 0"),
        ],
    )
    def test_impossible_options(self, options, message):
        with pytest.raises(ConfigError, match=message):
            build_encoder("residual", **options)

    def test_normalisation_per_channel(self):
        encoder = build_encoder("residual", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
        image = torch.tensor([0.6, 0.45, 0.425]).view(1, 3, 1, 1)
        assert torch.allclose(encoder.normalise(image), torch.ones(1, 3, 1, 1), atol=1e-6)

    def test_an_encoder_without_windows_has_no_receptive_field(self):
        encoder = Whole(channels=1, base_resolution=4, vector_size=1, map_size=(4, 4), map_channels=1)
        with pytest.raises(ConfigError, match="no receptive field"):
            _ = encoder.receptive_field
        with pytest.raises(ConfigError, match="no receptive field"):
            _ = encoder.total_stride


class TestTools:
    def test_count_macs_of_known_layers(self):
        layers = nn.Sequential(nn.Conv2d(2, 5, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 3 * 3, 7))
        assert count_macs(layers, torch.rand(1, 2, 7, 7)) == 3 * 3 * 5 * 3 * 3 * 2 + 45 * 7

    def test_count_macs_counts_its_own_thread_only(self):
        layer, ended = nn.Linear(10, 10), threading.Event()
        image = torch.rand(3, 10)

        def work():
            while not ended.is_set():
                layer(image)

        other = threading.Thread(target=work)
        other.start()
        try:
            assert {count_macs(lambda x: [layer(x) for _ in range(20)], image) for _ in range(50)} == {20 * 300}
        finally:
            ended.set()
            other.join()

    def test_count_macs_on_the_meta_device(self):
        encoder = build_encoder("residual").to("meta")
        image = torch.zeros(1, 3, 4096, 4096, device="meta")
        assert count_macs(encoder.features, image) == 4096 * count_macs(
            build_encoder("residual"), torch.rand(1, 3, 64, 64)
        )

    def test_init_xavier_bounds_weights_and_zeroes_biases(self):
        module = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(10, 20), nn.Linear(10, 8, bias=False))
        init_xavier(module)
        for layer, fans in zip(module, (4 * 9 + 6 * 9, 30, 18), strict=True):
            bound = (6 / fans) ** 0.5
            assert 0.8 * bound < layer.weight.abs().max() <= bound
            assert layer.bias is None or not layer.bias.any()


def options(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(ENCODERS[name]).parameters)


def test_training_on_several_threads_does_not_crash() -> None:
    """Channels-last convolutions of few channels corrupt memory in torch's backward pass on several threads."""
    code = (
        "import torch; from pyrtrav.encoders import build_encoder; torch.set_num_threads(2)\n"
        "encoder = build_encoder('residual', widths=(8, 12, 16), base_resolution=32)\n"
        "for count in range(1, 200, 9):\n"
        "    patches = torch.rand(count, 32, 32, 3).permute(0, 3, 1, 2)  # as patches come from the reader\n"
        "    encoder(patches).vector.sum().backward()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
