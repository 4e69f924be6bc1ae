"""Models of `transformers` as encoders, on small ones that are made and saved here; nothing is fetched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from pyrtrav.encoders import Encoder, build_encoder, count_macs
from pyrtrav.errors import ConfigError
from pyrtrav.methods import METHODS
from pyrtrav.model_file import EncoderSpec, ModelCard, build_model, load_model, save_model
from pyrtrav.predict import Predictor
from pyrtrav.training.data import load_dataset
from pyrtrav.training.setup import plan_training
from pyrtrav.training.trainer import Trainer
from pyrtrav.training.vector_cache import VectorCache
from pyrtrav.tree import RESULT_SCHEMA, TREE_SCHEMA, check
from tests.samples import REPOSITORY, compared

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "hidden_dropout_prob": 0.1,
}

# Name: configuration, map (channels, rows), prefix tokens.
SMALL: dict[str, tuple[Any, tuple[int, int], int]] = {
    "vit": (transformers.ViTConfig(**TOKENS, intermediate_size=64), (32, 4), 1),
    "dinov2-registers": (transformers.Dinov2WithRegistersConfig(**TOKENS, num_register_tokens=4), (32, 4), 5),
    "dinov2": (transformers.Dinov2Config(**TOKENS), (32, 4), 1),
    "swin": (
        transformers.SwinConfig(
            embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=32, patch_size=4, window_size=4
        ),
        (32, 4),
        0,
    ),
    "resnet": (transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]), (16, 4), 0),
    "convnext": (
        transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, drop_path_rate=0.2),
        (16, 4),
        0,
    ),
}

every_model = pytest.mark.parametrize("name", SMALL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every small model in a folder of its own, as `save_pretrained` writes it, with its preprocessing."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    transformers.utils.logging.disable_progress_bar()
    for number, (name, (config, _, _)) in enumerate(SMALL.items()):
        torch.manual_seed(number)
        model = transformers.AutoModel.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():  # far from where layers begin, where much is zero or one
                weight.add_(0.1 * torch.randn_like(weight))
            for buffer_name, buffer in model.named_buffers():
                if "running" in buffer_name:
                    buffer.add_(torch.rand_like(buffer))
        model.save_pretrained(root / name)
        write_preprocessing(root / name)
        found[name] = root / name
    return found


def write_preprocessing(folder: Path, **more: Any) -> None:
    said = {"image_mean": MEAN, "image_std": STD, "size": {"height": 32, "width": 32}, **more}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def encoder_of(folder: Path, **options: Any) -> Encoder:
    return build_encoder(f"hf:{folder}", **options)


def patches(count: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@every_model
def test_vector_and_map_are_the_model_s_own(name: str, folders: dict[str, Path]) -> None:
    _, (channels, rows), prefix = SMALL[name]
    encoder = encoder_of(folders[name])
    model = transformers.AutoModel.from_pretrained(folders[name]).eval()
    shape = (1, 3, 1, 1)
    pixels = (patches() - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
    with torch.no_grad():
        wanted, found = model(pixel_values=pixels), encoder(patches())
    torch.testing.assert_close(found.vector, wanted.pooler_output.flatten(1))
    assert (encoder.map_channels, *encoder.map_size) == (channels, rows, rows)
    assert found.map.shape == (3, channels, rows, rows)
    hidden = wanted.last_hidden_state
    for row, column in ((0, 0), (1, 3), (3, 2)):
        own = hidden[:, :, row, column] if hidden.ndim == 4 else hidden[:, prefix + row * rows + column]
        torch.testing.assert_close(found.map[:, :, row, column], own)


@every_model
def test_frozen_it_never_trains_and_never_changes(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name]).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    first, again = encoder(patches()), encoder(patches())
    assert torch.equal(first.vector, again.vector)  # no dropout
    assert not first.vector.requires_grad
    assert not first.map.requires_grad
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


@every_model
def test_fine_tuned_it_has_gradients_and_no_statistics_of_a_batch(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name], trainable=True).train()
    statistics = {key: value.clone() for key, value in encoder.state_dict().items() if "running" in key}
    encoding = encoder(patches())
    (encoding.vector.sum() + encoding.map.square().sum()).backward()
    unused = {key for key, weight in encoder.named_parameters() if weight.grad is None}
    assert all("mask_token" in key for key in unused)
    state = encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in statistics.items())
    if name == "resnet":
        assert statistics
        assert torch.allclose(encoder(patches(1)).vector, encoding.vector[:1], atol=1e-5)


@every_model
@pytest.mark.parametrize("method", METHODS)
def test_a_model_file_is_all_that_is_needed(
    name: str, method: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    options = {
        "fcn": {},
        "topdown": {"max_depth": 1},
        "mil": {"depth": 1},
        "mgnet": {"glimpses": 4},
        "gfnet": {"looks": 4},
    }
    card = ModelCard(
        method,
        EncoderSpec(f"hf:{folders[name]}"),
        options[method],
        ("a", "b"),
        3,
        max_depth={"topdown": 1, "mgnet": 3, "gfnet": 3}.get(method, 0),
        selection={"select": "budget", "budget": 4} if method == "topdown" else {"select": "all"},
    )
    if method == "fcn":
        with pytest.raises(ConfigError, match="no receptive field"):
            build_model(card)
        return
    model = build_model(card).eval()
    path = tmp_path / "model.safetensors"
    save_model(path, model, card)
    # The folder is not looked for again.
    monkeypatch.setattr("pyrtrav.encoders.hub.load", None)
    loaded = load_model(path)
    assert str(folders[name]) not in json.dumps(loaded.card.encoder.options)
    twin = loaded.model
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model.encoder(patches()).vector, twin.encoder(patches()).vector)
    pixels = np.random.default_rng(0).integers(0, 255, (100, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    outcomes = [Predictor(path, device="cpu").predict([tmp_path / "image.png"])[0] for _ in range(2)]
    assert compared(outcomes[0].record) == compared(outcomes[1].record)
    assert outcomes[0].tree is not None
    check(outcomes[0].record, RESULT_SCHEMA, "record")
    check(outcomes[0].tree.to_dict(), TREE_SCHEMA, "tree")
    assert outcomes[0].record["cost"]["fixations"] == 4


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_cost_counts_attention_too(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name])
    layers = 0

    def count(layer: Any, _: object, output: torch.Tensor) -> None:
        nonlocal layers
        layers += output.numel() * layer.weight[0].numel()

    for layer in encoder.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_hook(count)
    found = count_macs(encoder, patches(1))
    # Two layers, each two products of 17 x 17 x 32.
    assert found == layers + (2 * 2 * 17 * 17 * 32 if name == "vit" else 0)


def test_a_model_of_images_and_text_is_its_image_half(tmp_path: Path) -> None:
    half = {**TOKENS, "intermediate_size": 64}
    half.pop("hidden_dropout_prob")
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    config = transformers.CLIPConfig(vision_config=half, text_config=text)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    write_preprocessing(tmp_path)
    encoder = encoder_of(tmp_path, mean=0.0, std=1.0)
    with torch.no_grad():
        wanted = model.vision_model(pixel_values=patches())
        torch.testing.assert_close(encoder(patches()).vector, wanted.pooler_output)
    assert encoder.map_size == (4, 4)


def test_a_pooler_without_weights_is_not_used(tmp_path: Path, folders: dict[str, Path]) -> None:
    """A checkpoint for classification has none: random numbers would stand before the class token."""
    transformers.ViTForImageClassification(SMALL["vit"][0]).eval().save_pretrained(tmp_path)
    write_preprocessing(tmp_path)
    encoder = encoder_of(tmp_path, mean=0.0, std=1.0)
    bare = transformers.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    with torch.no_grad():
        wanted = bare(pixel_values=patches()).last_hidden_state
        torch.testing.assert_close(encoder(patches()).vector, wanted[:, 0])
    card = ModelCard("mil", EncoderSpec(f"hf:{tmp_path}"), {}, ("a", "b"), 3, selection={"select": "all"})
    save_model(tmp_path / "mil.safetensors", build_model(card), card)
    assert load_model(tmp_path / "mil.safetensors").card.encoder.options["pooler"] is False


def test_other_sizes_interpolate_positions(folders: dict[str, Path]) -> None:
    for name in ("vit", "dinov2-registers", "resnet"):
        encoder = encoder_of(folders[name], base_resolution=64)
        assert encoder(patches(2, 64)).map.shape[2:] == encoder.map_size == (8, 8)
    with pytest.raises(ConfigError, match="60 is no multiple of its patches of 8 px"):
        encoder_of(folders["vit"], base_resolution=60)


@pytest.mark.parametrize(
    ("said", "mean", "std", "side"),
    [
        ({}, MEAN, STD, 32),
        ({"do_normalize": False}, None, None, 32),
        ({"do_rescale": False}, [m / 255 for m in MEAN], [s / 255 for s in STD], 32),
        ({"rescale_factor": 2 / 255}, [m / 2 for m in MEAN], [s / 2 for s in STD], 32),
        ({"do_center_crop": True, "crop_size": {"height": 64, "width": 64}}, MEAN, STD, 64),
        ({"do_center_crop": False, "crop_size": 64, "size": {"shortest_edge": 40}}, MEAN, STD, 40),
    ],
)
def test_preprocessing_is_the_model_s(
    said: dict[str, Any], mean: list[float] | None, std: list[float] | None, side: int, tmp_path: Path
) -> None:
    from pyrtrav.encoders.hub import preprocessing

    write_preprocessing(tmp_path, **said)
    found = preprocessing(str(tmp_path))
    assert found.side == side
    for values, wanted in ((found.mean, mean), (found.std, std)):
        assert (values is None) == (wanted is None)
        assert wanted is None or values == pytest.approx(wanted)


def test_what_cannot_be_used_is_told(tmp_path: Path, folders: dict[str, Path]) -> None:
    text = tmp_path / "text"
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    transformers.AutoModel.from_config(config).save_pretrained(text)
    silent = tmp_path / "silent"
    transformers.AutoModel.from_pretrained(folders["resnet"]).save_pretrained(silent)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((folders["vit"] / "config.json").read_text())
    torch.save({}, pickled / "pytorch_model.bin")
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.json").write_text((folders["vit"] / "config.json").read_text())
    (torn / "model.safetensors").write_bytes((folders["vit"] / "model.safetensors").read_bytes()[:5000])
    for name, message in [
        ("hf:nobody/no-such-model", "hf download nobody/no-such-model"),
        (f"hf:{tmp_path / 'nothing'}", "must be a folder with config.json"),
        (f"hf:{text}", "BertModel is no model of images"),
        (f"hf:{silent}", "does not say base_resolution, mean, std; give it with --set"),
        (f"hf:{pickled}", "model.safetensors"),
        (f"hf:{torn}", "cannot be loaded"),
        ("hf:", "unknown encoder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build_encoder(name)
    with pytest.raises(ConfigError, match=r"does not say base_resolution, std; give"):
        build_encoder(f"hf:{silent}", mean=0.0)
    with pytest.raises(ConfigError, match=r"vit_of_2040.* does not build it; try a newer one"):
        encoder_of(folders["vit"], config={"model_type": "vit_of_2040"})
    with pytest.raises(ConfigError, match="trainable"):
        encoder_of(folders["vit"], trainable="yes")
    with pytest.raises(ConfigError, match="has 3 channels, not 1"):
        encoder_of(folders["vit"], channels=1)
    with pytest.raises(ConfigError, match="did you mean 'trainable'"):
        encoder_of(folders["vit"], trainible=True)


CLASSIFY = """
import json, sys
from pyrtrav.predict import Predictor
print(json.dumps([o.record["prediction"]["label"] for o in Predictor(sys.argv[1], device="cpu").predict(sys.argv[2:])]))
"""


@pytest.mark.parametrize(("name", "trainable"), [("dinov2-registers", False), ("resnet", True)])
def test_training_and_classifying_offline_without_the_folder(
    name: str, trainable: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The standard pipeline of the field: tiles, a pretrained encoder, attention."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label, shade in (("dark", 60), ("light", 190)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(shade - 40, shade + 40, (64, 60, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{i}.png")
    source = tmp_path / "model"
    folders[name].rename(source)
    try:
        dataset = load_dataset(tmp_path / "data")
        options = ["epochs=2", "batch_size=4", "depth=1", "lr=0.01", f"trainable={str(trainable).lower()}"]
        card, config = plan_training(dataset, method="mil", encoder=f"hf:{source}", assignments=options)
        trainer = Trainer(dataset, card, config, tmp_path / "run", device="cpu")
        before = {key: value.clone() for key, value in trainer.model.encoder.state_dict().items()}
        path = trainer.run()
    finally:
        source.rename(folders[name])
    after = load_model(path).model.encoder.state_dict()
    assert all(torch.equal(before[key], value) for key, value in after.items()) == (not trainable)
    if not trainable:
        assert_classified_alone(path, sorted((tmp_path / "data" / "val").rglob("*.png")))


def test_kept_vectors_train_the_same_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    """Later epochs read and encode only what the policy had not looked at before; the weights are the same."""
    random = np.random.default_rng(0)
    for label, shade in (("dark", 60), ("light", 190)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(shade - 40, shade + 40, (64, 60, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
    dataset = load_dataset(tmp_path / "data")
    found = {}
    for kept in (0, 100):
        options = ["epochs=3", "batch_size=4", "turn=false", "jitter=0", "max_depth=1", f"keep_vectors={kept}"]
        card, config = plan_training(dataset, encoder=f"hf:{folders['dinov2-registers']}", assignments=options)
        trainer = Trainer(dataset, card, config, tmp_path / f"run-{kept}", device="cpu")
        found[kept] = load_model(trainer.run()).model.state_dict()
        memory = trainer.model.traversal.memory
        assert (memory is None) == (kept == 0)
        if isinstance(memory, VectorCache):
            places = len(dataset.examples) * (1 + 9)
            assert memory.encoded <= places < memory.asked
    for name, value in found[0].items():
        torch.testing.assert_close(found[100][name], value, rtol=1e-3, atol=1e-4)
    for method, encoder, told in (
        ("topdown", "residual", "only a frozen encoder's vectors"),
        ("mil", f"hf:{folders['dinov2-registers']}", "keep_vectors is for methods"),
    ):
        card, config = plan_training(dataset, method=method, encoder=encoder, assignments=["keep_vectors=1"])
        with pytest.raises(ConfigError, match=told):
            Trainer(dataset, card, config, tmp_path / "other", device="cpu")


def assert_classified_alone(model: Path, images: list[Path]) -> None:
    """By a process of its own without network, as here, and without a word."""
    done = subprocess.run(
        [sys.executable, "-c", CLASSIFY, str(model), *map(str, images)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        cwd=REPOSITORY,
    )
    assert (done.returncode, done.stderr) == (0, "")
    wanted = [outcome.record["prediction"]["label"] for outcome in Predictor(model, device="cpu").predict(images)]
    assert json.loads(done.stdout) == wanted
