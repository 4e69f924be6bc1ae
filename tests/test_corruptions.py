"""The 15 corruptions: what each does by its formula, how much, and that a seed gives the same again."""

import io

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage

from pyrtrav.errors import ConfigError
from pyrtrav.robustness.blur import disk, trailed
from pyrtrav.robustness.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, corrupt
from pyrtrav.robustness.picture import magnified
from pyrtrav.robustness.weather import plasma
from tests.samples import SAMPLES


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """224 x 224 pixels, for which the published parameters are."""
    with Image.open(SAMPLES / "scene.png") as image:
        return np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BOX))


def flat(value: int, side: int = 224) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def test_there_are_fifteen_in_four_groups() -> None:
    assert len(CORRUPTIONS) == 15
    assert [len(group) for group in GROUPS.values()] == [3, 4, 4, 4]


@pytest.mark.parametrize("shape", [(5, 7, 1), (40, 33, 3), (1, 1, 3)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_keeps_its_shape_and_a_seed_gives_the_same(name: str, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    kept = pixels.copy()
    for severity in (1, 5):
        once, again = (corrupt(pixels, name, severity, (3, 4)) for _ in range(2))
        assert once.shape == shape
        assert once.dtype == np.uint8
        assert np.array_equal(once, again)
    assert np.array_equal(pixels, kept)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "snow", "frost", "fog", "glass_blur"]
)
def test_another_seed_gives_another_picture(name: str, picture: np.ndarray) -> None:
    assert not np.array_equal(corrupt(picture, name, 3, 0), corrupt(picture, name, 3, 1))


def distance(found: np.ndarray, picture: np.ndarray) -> float:
    return float(np.sqrt(np.square(found / 255.0 - picture / 255.0).mean()))


def hidden(found: np.ndarray, picture: np.ndarray) -> float:
    """What a picture lacks of its correlation with another: brightness and contrast count for nothing."""
    return 1 - float(np.corrcoef(found.reshape(-1), picture.reshape(-1))[0, 1])


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"elastic_transform"}))
def test_a_higher_severity_does_more(name: str, picture: np.ndarray) -> None:
    # Fog and ice darken as they thicken, so that what they hide says more than how far values are off.
    measure = hidden if name in ("fog", "frost") else distance
    found = [measure(corrupt(picture, name, severity), picture) for severity in SEVERITIES]
    assert found == sorted(found)
    assert found[-1] > 1.15 * found[0] > 0


def test_warps_are_wide_at_first_and_fine_later(picture: np.ndarray) -> None:
    found = [distance(corrupt(picture, "elastic_transform", severity), picture) for severity in SEVERITIES]
    assert found[:2] == sorted(found[:2])
    assert found[2:] == sorted(found[2:])
    assert min(found) > 0.01


def test_the_noises_have_the_moments_of_their_formulas() -> None:
    gaussian = corrupt(flat(128), "gaussian_noise", 2) / 255.0
    assert gaussian.mean() == pytest.approx(128 / 255, abs=0.002)
    assert gaussian.std() == pytest.approx(0.12, abs=0.002)
    # Poisson counts of mean 25 x value, over 25: of variance value / 25.
    shot = corrupt(flat(102), "shot_noise", 2) / 255.0
    assert shot.mean() == pytest.approx(0.4, abs=0.002)
    assert shot.var() == pytest.approx(0.4 / 25, rel=0.03)
    assert np.abs(shot * 25 - np.rint(shot * 25)).max() < 25 / 255
    impulse = corrupt(flat(100), "impulse_noise", 5)
    assert set(np.unique(impulse)) == {0, 100, 255}
    assert (impulse == 0).mean() == pytest.approx(0.27 / 2, abs=0.004)
    assert (impulse == 255).mean() == pytest.approx(0.27 / 2, abs=0.004)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_contrast_are_their_formulas(severity: int, picture: np.ndarray) -> None:
    hsv = rgb_to_hsv(picture / 255.0)
    hsv[:, :, 2] = np.clip(hsv[:, :, 2] + severity / 10, 0, 1)
    expected = hsv_to_rgb(hsv) * 255
    assert np.abs(corrupt(picture, "brightness", severity) - expected).max() < 0.51
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = picture.mean((0, 1))
    expected = np.clip((picture - mean) * share + mean, 0, 255)
    assert np.abs(corrupt(picture, "contrast", severity) - expected).max() < 0.51


def test_black_gets_brighter_as_gray() -> None:
    assert np.array_equal(corrupt(flat(0, 8), "brightness", 5), flat(128, 8))


def test_pixels_and_jpeg_are_pillows(picture: np.ndarray) -> None:
    image = Image.fromarray(picture)
    small = image.resize((56, 56), Image.Resampling.BOX).resize((224, 224), Image.Resampling.BOX)
    assert np.array_equal(corrupt(picture, "pixelate", 5), np.asarray(small))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=7)
    assert np.array_equal(corrupt(picture, "jpeg_compression", 5), np.asarray(Image.open(file)))


def test_defocus_is_the_mean_over_a_disk(picture: np.ndarray) -> None:
    """Severity 1 by hand: radius 3, softened with a Gaussian of 0.1 pixels, which is none."""
    rows, columns = np.indices((7, 7)) - 3
    kernel = (rows**2 + columns**2 <= 9).astype(float)
    assert kernel.sum() == 29
    expected = [ndimage.convolve(channel / 1.0, kernel / 29, mode="mirror") for channel in picture.transpose(2, 0, 1)]
    found = corrupt(picture, "defocus_blur", 1)
    assert np.abs(found - np.stack(expected, 2)).max() < 0.51
    assert disk(10.0, 0.5).sum() == pytest.approx(1)


def test_a_point_in_motion_is_half_a_gaussian_along_a_line() -> None:
    point = np.zeros((224, 224, 1))
    point[112, 112] = 1
    found = trailed(point, 10, 3, 0)[:, :, 0]
    expected = np.exp(-(np.arange(21) ** 2) / 18.0)
    assert found[112, 112:91:-1] == pytest.approx(expected / expected.sum(), abs=1e-9)
    assert found.sum() == pytest.approx(1)
    slanted = trailed(point, 10, 3, 90)[:, :, 0]
    assert slanted[112:91:-1, 112] == pytest.approx(expected / expected.sum(), abs=1e-9)


def test_what_is_magnified_keeps_its_middle() -> None:
    """A plane stays a plane, flatter by the factor."""
    rows, columns = np.indices((40, 60)) / 100.0
    plane = np.stack([rows + columns], 2)
    found = magnified(plane, 1.25)[:, :, 0]
    middle = plane.mean()
    assert found.mean() == pytest.approx(middle, abs=1e-9)
    assert np.diff(found[:, 30])[5:-5] == pytest.approx(0.01 / 1.25)
    assert np.diff(found[20])[5:-5] == pytest.approx(0.01 / 1.25)
    assert magnified(plane, 1.0) == pytest.approx(plane)


def test_clouds_fill_their_range_and_are_rougher_with_less_decay() -> None:
    def roughness(decay: float) -> float:
        land = plasma(100, 180, decay, np.random.default_rng(0))
        assert land.shape == (100, 180)
        assert land.min() >= 0
        assert land.max() <= 1
        return float(np.abs(np.diff(land, axis=1)).mean() / land.std())

    rough = [roughness(decay) for decay in (1.2, 1.4, 1.7)]
    assert rough == sorted(rough, reverse=True)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "glass_blur", "elastic_transform"])
def test_a_picture_of_twice_the_size_is_corrupted_alike(name: str, picture: np.ndarray) -> None:
    """Lengths follow the side: seen from twice as far both look the same, as far as their draws go."""
    large = picture.repeat(2, 0).repeat(2, 1)
    found = corrupt(large, name, 4).reshape(224, 2, 224, 2, 3).mean((1, 3))
    assert distance(found, picture) == pytest.approx(distance(corrupt(picture, name, 4), picture), rel=0.3)


def test_what_there_is_not_is_refused(picture: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="did you mean 'fog'"):
        corrupt(picture, "frog", 1)
    with pytest.raises(ConfigError, match="from 1 to 5, got 6"):
        corrupt(picture, "fog", 6)
