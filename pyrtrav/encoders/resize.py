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
