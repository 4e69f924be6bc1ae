"""Learned filter sizes: the paper's costs, slow counterparts, gradients of the mixing weights, and pruning."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrtrav.encoders import LinearClassifier, MultiresEncoder, build_encoder, count_macs
from pyrtrav.encoders.multires import prune, prune_to_one
from pyrtrav.encoders.multires.blocks import Mixing, MultiresLayer
from pyrtrav.errors import ConfigError
from pyrtrav.methods.fcn import Fcn, FcnConfig
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, load_model, save_model
from pyrtrav.sampling import ImageStack
from pyrtrav.selection import Settings

SMALL: dict[str, Any] = {"base_resolution": 16, "filters": 4, "blocks": 4, "resolutions": 3, "stride": 1}

# "Convolutional Neural Networks without Pooling or Fixed Filter Sizes", tables 1 and 4: millions of parameters and
# billions of multiply-accumulates. Of its layers two are the image layer and the classifier.
TABLES = {
    "Our Model 64 x 10": ({"filters": 64, "blocks": 8}, 0.3, 0.41),
    "Scale Invariant 64 x 10": ({"filters": 64, "blocks": 8, "structure": "scale-invariant"}, 0.3, 0.41),
    "No Pooling 64 x 10": ({"filters": 64, "blocks": 8, "structure": "no-pooling"}, 0.3, 0.31),
    "Conv 128 x 8": ({"filters": 128, "blocks": 6}, 0.9, 1.23),
    "Eff-Conv 128 x 8": ({"filters": 128, "blocks": 6, "block": "mbconv"}, 1.5, 1.69),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def as_in_the_paper(**options: Any) -> LinearClassifier:
    with torch.device("meta"):
        return LinearClassifier(MultiresEncoder(base_resolution=32, stride=1, norm="batch", **options), 10)


def learned(**options: Any) -> MultiresEncoder:
    """An encoder whose mixing weights differ, in double precision."""
    encoder = MultiresEncoder(**SMALL | options).double()
    for logits in encoder.parts().mixing:
        nn.init.normal_(logits, std=1.5)
    return encoder


class TestTables:
    @pytest.mark.parametrize("row", TABLES)
    def test_parameters_and_costs(self, row: str) -> None:
        options, millions, billions = TABLES[row]
        network = as_in_the_paper(**options)
        assert sum(weight.numel() for weight in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)
        macs = count_macs(network, torch.zeros(1, 3, 32, 32, device="meta"))
        assert macs / 1e9 == pytest.approx(billions, rel=0.05)

    def test_predefined_pooling_halves_the_resolution_every_two_layers(self) -> None:
        """It costs less than the table's 0.26e9: docs/encoders.md."""
        network = as_in_the_paper(filters=64, blocks=8, structure="predefined")
        assert network.encoder.kept == ((0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,))
        layer = 64 * 64 * 9 * 32**2
        expected = 3 * 64 * 9 * 32**2 + 2 * (layer + layer // 4 + layer // 16 + layer // 64) + 640
        assert count_macs(network, torch.zeros(1, 3, 32, 32, device="meta")) == expected


def slow_layer(layer: MultiresLayer, features: np.ndarray) -> np.ndarray:
    """Equations (4) and (5), position by position; the block is torch's."""
    logits = layer.mixing.logits.detach().numpy()
    alpha = np.exp(logits) / np.exp(logits).sum()
    channels, rows, columns = features.shape
    mixed = np.zeros_like(features)
    for resolution in range(len(alpha)):
        side = 2**resolution
        cells = (channels, -(-rows // side), -(-columns // side))
        pooled = np.zeros(cells)
        for channel, row, column in itertools.product(*map(range, cells)):
            top, left = row * side, column * side
            pooled[channel, row, column] = features[channel, top : top + side, left : left + side].max()
        with torch.no_grad():
            found = layer.block(torch.from_numpy(pooled)[None])[0].numpy()
        for row, column in itertools.product(range(rows), range(columns)):
            mixed[:, row, column] += alpha[resolution] * found[:, row // side, column // side]
    return mixed


def by_hand(encoder: MultiresEncoder, patches: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The vector of patches for these weights of resolutions and of layers: everything is computed, zeros too."""
    features = encoder.image(encoder.normalise(patches))
    mixed = torch.zeros_like(features)
    for layer, row, depth in zip(encoder.layers, alpha, beta, strict=True):
        total = torch.zeros_like(features)
        for resolution, weight in enumerate(row):
            side = 2**resolution
            found = layer.block(functional.max_pool2d(features, side), resolution)
            total = total + weight * found.repeat_interleave(side, 2).repeat_interleave(side, 3)
        features = total
        mixed = mixed + depth * features
    return mixed.mean((2, 3))


class TestLayer:
    @pytest.mark.parametrize("shape", [(8, 8), (7, 10)])
    def test_equals_a_slow_one(self, shape: tuple[int, int]) -> None:
        encoder = learned()
        layer = encoder.layers[0]
        features = torch.randn(1, 4, *shape, dtype=torch.float64)
        with torch.no_grad():
            fast = layer(features)[0]
        torch.testing.assert_close(fast, torch.from_numpy(slow_layer(layer, features[0].numpy())))

    @pytest.mark.parametrize("options", [{}, {"learn_depth": True}, {"block": "mbconv"}])
    def test_mixing_weights_have_the_gradient_of_finite_differences(self, options: dict[str, Any]) -> None:
        encoder = learned(**options)
        patches, target = torch.rand(2, 3, 16, 16).double(), torch.randn(4).double()

        def loss() -> Tensor:
            return (encoder(patches).vector @ target).square().sum()

        loss().backward()
        step = 1e-5
        for logits in encoder.parts().mixing:
            for number in range(len(logits)):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        logits[number] += sign * step
                        values.append(float(loss()))
                        logits[number] -= sign * step
                slope = (values[0] - values[1]) / (2 * step)
                assert float(logits.grad[number]) == pytest.approx(slope, rel=1e-5, abs=1e-8)

    def test_every_resolution_has_statistics_of_its_own(self) -> None:
        encoder = MultiresEncoder(**SMALL, norm="batch").train()
        layer, features = encoder.layers[0], torch.randn(8, 4, 16, 16)
        layer(features)
        for resolution in range(3):
            found = functional.relu(layer.block.conv(functional.max_pool2d(features, 2**resolution)))
            torch.testing.assert_close(layer.block.norm.mean[resolution], 0.1 * found.mean((0, 2, 3)))


class TestStructures:
    def test_no_pooling_is_a_plain_network(self) -> None:
        encoder = MultiresEncoder(**SMALL, structure="no-pooling")
        plain = nn.Sequential(encoder.image, *(layer.block for layer in encoder.layers))
        patches = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(encoder(patches).vector, plain(encoder.normalise(patches)).mean((2, 3)))

    def test_predefined_pooling_is_a_network_that_pools_between_layers(self) -> None:
        encoder = MultiresEncoder(**SMALL, structure="predefined")
        assert encoder.kept == ((0,), (0,), (1,), (2,))
        first, second, third, last = (layer.block for layer in encoder.layers)
        pool = nn.MaxPool2d(2)
        usual = nn.Sequential(encoder.image, first, second, pool, third, pool, last)
        patches = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(encoder(patches).vector, usual(encoder.normalise(patches)).mean((2, 3)))

    def test_what_is_learned_begins_scale_invariant(self) -> None:
        encoder, fixed = MultiresEncoder(**SMALL), MultiresEncoder(**SMALL, structure="scale-invariant")
        fixed.load_state_dict({key: value for key, value in encoder.state_dict().items() if "logits" not in key})
        patches = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(encoder(patches).map, fixed(patches).map)
        assert (encoder.mixing_table() - 1 / 3).abs().max() < 1e-6

    @pytest.mark.parametrize(
        ("options", "mixtures"), [({}, 4), ({"learn_depth": True}, 5), ({"structure": "predefined"}, 0)]
    )
    def test_parts_share_out_every_parameter_once(self, options: dict[str, Any], mixtures: int) -> None:
        encoder = MultiresEncoder(**SMALL, **options)
        weights, mixing = encoder.parts()
        assert len(mixing) == mixtures
        assert {id(w) for w in encoder.parameters()} == {id(w) for w in (*weights, *mixing)}
        assert len(weights) + len(mixing) == len(list(encoder.parameters()))
        names = {id(w): name for name, w in encoder.named_parameters()}
        assert all(names[id(w)].endswith("logits") for w in mixing)

    def test_a_block_that_sees_whole_images_does_not_go_with_fcn(self) -> None:
        with pytest.raises(ConfigError, match="no receptive field"):
            Fcn(FcnConfig(), MultiresEncoder(**SMALL, block="mbconv"), 2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"block": "conf"}, "unknown block 'conf'; did you mean 'conv'"),
            ({"structure": "learnt"}, "unknown structure 'learnt'; did you mean 'learned'"),
            ({"learn_depth": "False"}, "learn_depth"),
            ({"blocks": 0}, "blocks must be 1 or more, got 0"),
            ({"base_resolution": 18}, "18 is no multiple of 4"),
            ({"kept": [[0]]}, "kept has 1 layers, outputs asks for layer 3"),
            ({"kept": [[0, 3]] * 4}, r"kept must be some of \[0, 1, 2\] in rising order, got \[0, 3\]"),
            ({"outputs": [0, 3]}, r"outputs must be some of \[3\]"),
        ],
    )
    def test_impossible_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build_encoder("multires", **SMALL | options)


class TestPruning:
    def test_the_reference_is_the_encoder(self) -> None:
        encoder, patches = learned(learn_depth=True), torch.rand(2, 3, 16, 16).double()
        expected = by_hand(encoder, patches, encoder.mixing_table(), encoder.depth.table())
        torch.testing.assert_close(encoder(patches).vector, expected)

    @pytest.mark.parametrize("threshold", [0.1, 0.2, 0.4])
    @pytest.mark.parametrize("options", [{}, {"learn_depth": True}, {"block": "mbconv"}])
    def test_equals_the_whole_one_with_small_weights_set_to_zero(
        self, options: dict[str, Any], threshold: float
    ) -> None:
        encoder, patches = learned(**options), torch.rand(2, 3, 16, 16).double()
        pruned = prune(encoder, threshold)
        alpha, beta = encoder.mixing_table(), encoder.depth.table()
        # The heaviest stays, whatever it weighs.
        alpha[(alpha < threshold) & (alpha < alpha.amax(1, keepdim=True))] = 0
        beta[(beta < threshold) & (beta < beta.max())] = 0
        torch.testing.assert_close(pruned(patches).vector, by_hand(encoder, patches, alpha, beta))
        assert count_macs(pruned, patches) <= count_macs(encoder, patches)
        assert len(pruned.layers) == int(beta.nonzero().max()) + 1

    def test_a_threshold_leaves_out_something(self) -> None:
        encoder, patch = learned(), torch.rand(1, 3, 16, 16).double()
        whole, some, one = encoder, prune(encoder, 0.2), prune_to_one(encoder)
        costs = [count_macs(each, patch) for each in (whole, some, one)]
        assert costs[0] > costs[1] >= costs[2]
        assert all(len(used) == 1 for used in one.kept)
        assert one.kept == tuple((number,) for number in encoder.mixing_table().argmax(1).tolist())

    def test_one_resolution_equals_the_whole_one_with_the_others_set_to_zero(self) -> None:
        encoder, patches = learned(), torch.rand(2, 3, 16, 16).double()
        alpha = encoder.mixing_table()
        alpha[alpha < alpha.amax(1, keepdim=True)] = 0
        torch.testing.assert_close(
            prune_to_one(encoder)(patches).vector, by_hand(encoder, patches, alpha, encoder.depth.table())
        )

    def test_the_original_stays_and_the_copy_can_be_trained(self) -> None:
        encoder = learned(learn_depth=True)
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        pruned = prune(encoder, 0.3)
        pruned(torch.rand(1, 3, 16, 16).double()).vector.square().sum().backward()
        assert all(weight.grad is not None for weight in pruned.parameters())
        with torch.no_grad():
            for weight in pruned.parameters():
                weight.zero_()
        assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())

    def test_a_pruned_encoder_travels_in_a_model_file(self, tmp_path: Path) -> None:
        card = ModelCard("fcn", EncoderSpec("multires", SMALL | {"learn_depth": True}), {}, ("a", "b"), 3)
        model = build_model(card)
        for logits in model.encoder.parts().mixing:
            nn.init.normal_(logits, std=1.5)
        model.encoder = prune(model.encoder, 0.3)
        save_model(tmp_path / "pruned.safetensors", model, card)
        loaded = load_model(tmp_path / "pruned.safetensors").model
        assert loaded.encoder.kept == model.encoder.kept
        assert loaded.encoder.outputs == model.encoder.outputs
        patches = torch.rand(2, 3, 16, 16)
        assert torch.equal(loaded.encoder(patches).vector, model.encoder(patches).vector)

    def test_a_pruned_encoder_takes_its_place_in_topdown(self, tmp_path: Path) -> None:
        spec = EncoderSpec("multires", SMALL)
        how = {"max_depth": 1, "selection": {"select": "all"}}
        card = ModelCard("topdown", spec, {"max_depth": 1}, ("a", "b"), 3, **how)
        model = build_model(card)
        for logits in model.encoder.parts().mixing:
            nn.init.normal_(logits, std=1.5)
        image = ImageStack(torch.rand(1, 3, 32, 32))
        trace = model.look(image, Settings("all", depth=1))
        (before,) = model.macs(trace)
        pruned = prune_to_one(model.encoder)
        model.encoder = pruned
        assert model.encoder is pruned
        assert model.macs(trace)[0] < before
        logits = model.believe(model.look(image, Settings("all", depth=1)), 1)
        save_model(tmp_path / "pruned.safetensors", model, card)
        loaded = load_model(tmp_path / "pruned.safetensors").model
        assert loaded.encoder.kept == pruned.kept
        assert torch.equal(loaded.believe(loaded.look(image, Settings("all", depth=1)), 1), logits)

    def test_of_two_encoders_none_is_replaced_alone(self) -> None:
        model = build_model(ModelCard("gfnet", EncoderSpec("multires", SMALL), {}, ("a", "b"), 3))
        with pytest.raises(ConfigError, match="two encoders"):
            model.encoder = prune_to_one(model.encoder)

    def test_it_sees_less(self) -> None:
        encoder = MultiresEncoder(**SMALL)
        encoder.keep([(0,)] * 4, encoder.outputs)
        # Image layer and four layers of 3 x 3, and the cell that the map's means are taken over.
        assert encoder.receptive_field == 4 + 2 * 5

    def test_what_is_fixed_is_not_pruned(self) -> None:
        fixed = learned(structure="scale-invariant", learn_depth=True)
        for smaller in (prune(fixed, 0.4), prune_to_one(fixed)):
            assert smaller.kept == fixed.kept[: len(smaller.kept)]
        with pytest.raises(ConfigError, match="mixing weights are fixed"):
            prune(MultiresEncoder(**SMALL, structure="scale-invariant"), 0.1)
        with pytest.raises(ConfigError, match="within 0 and 1, got 2"):
            prune(MultiresEncoder(**SMALL), 2.0)


def test_equal_weights_need_no_logits() -> None:
    mixing = Mixing(4, learned=False)
    mixing.kept = (1, 3)
    assert mixing.table().tolist() == [0, 0.5, 0, 0.5]
