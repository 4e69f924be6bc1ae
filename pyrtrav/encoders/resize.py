"""Feature maps at half and at several times their size; any number of rows and columns."""

from torch import Tensor
from torch.nn import functional


def halved(features: Tensor) -> Tensor:
    """Return the largest of each 2 x 2 features; an odd last row or column stands for itself."""
    return functional.max_pool2d(features, 2, ceil_mode=True)


def enlarged(features: Tensor, times: int, like: Tensor) -> Tensor:
    """Return each feature ``times`` x ``times`` times, cut to the rows and columns of ``like``."""
    if times == 1:
        return features
    rows, columns = like.shape[2:]
    return functional.interpolate(features, scale_factor=times, mode="nearest")[:, :, :rows, :columns]


def centred(features: Tensor, rows: int, columns: int) -> Tensor:
    """Return the middle of features, or features amid zeros, as so many rows and columns.

    As many come or go on either side; where that is no whole number, each is the mean of its neighbours.
    """
    down, across = rows - features.shape[2], columns - features.shape[3]
    if down % 2 or across % 2:
        kernel = (1 + down % 2, 1 + across % 2)
        # Zeros first, which a crop takes away again.
        features = functional.avg_pool2d(
            functional.pad(features, (kernel[1] - 1,) * 2 + (kernel[0] - 1,) * 2), kernel, 1
        )
        down, across = rows - features.shape[2], columns - features.shape[3]
    return functional.pad(features, (across // 2,) * 2 + (down // 2,) * 2) if down or across else features
