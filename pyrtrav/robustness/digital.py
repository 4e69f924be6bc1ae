"""What happens to a picture in a machine: little contrast, warping, coarse pixels, JPEG."""

import io

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from pyrtrav.robustness.picture import Picture, Random, scale_of


def contrast(picture: Picture, severity: int, random: Random) -> Picture:
    """Closer to each channel's mean."""
    share = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = picture.mean((0, 1))
    return np.asarray((picture - mean) * share + mean)


_ELASTIC = (
    # strength and smoothness of the warp, how far the corners of the affine map move; of a side of 244 pixels
    (2, 0.7, 0.1),
    (2, 0.08, 0.2),
    (0.05, 0.01, 0.02),
    (0.07, 0.01, 0.02),
    (0.12, 0.01, 0.02),
)


def elastic_transform(picture: Picture, severity: int, random: Random) -> Picture:
    """Warped: wide at severities 1 and 2, finely from 3 on."""
    # The published program says 244 of pictures of 224.
    strength, smooth, move = (244 * scale_of(picture) * length for length in _ELASTIC[severity - 1])
    height, width = picture.shape[:2]
    warp = np.stack(
        [gaussian_filter(random.uniform(-1, 1, (height, width)), smooth, truncate=3) * strength for _ in range(2)]
    )
    third = min(height, width) // 3
    centre = np.array([height // 2, width // 2])
    corners = centre + third * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = corners + random.uniform(-move, move, (3, 2))
    # The affine map that takes the moved corners back.
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    place = np.moveaxis(np.indices((height, width)) + warp, 0, 2)
    source = np.moveaxis(place @ back[:2] + back[2], 2, 0)
    channels = [map_coordinates(channel, source, order=1, mode="mirror") for channel in np.moveaxis(picture, 2, 0)]
    return np.stack(channels, axis=2)


def pixelate(picture: Picture, severity: int, random: Random) -> Picture:
    """Fewer pixels, each shown as a square."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    block = 1 + (1 / share - 1) * scale_of(picture)
    height, width = picture.shape[:2]
    small = max(1, int(width / block)), max(1, int(height / block))
    image = _image(picture).resize(small, Image.Resampling.BOX)
    return _picture(image.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(picture: Picture, severity: int, random: Random) -> Picture:
    """Written as JPEG of a low quality, and read again."""
    quality = (25, 18, 15, 10, 7)[severity - 1]
    file = io.BytesIO()
    _image(picture).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return _picture(image)


def _image(picture: Picture) -> Image.Image:
    pixels = np.rint(picture * 255).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _picture(image: Image.Image) -> Picture:
    pixels = np.asarray(image, dtype=np.float64) / 255
    return pixels.reshape(*pixels.shape[:2], -1)
