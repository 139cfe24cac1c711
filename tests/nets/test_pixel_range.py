"""The range of enhanced images, and its warning."""

import numpy as np
import pytest
import torch

from urnet.nets.pixel_range import PixelRange


def counted(*images) -> PixelRange:
    pixels = PixelRange()
    for image in images:
        pixels.add(image)
    return pixels


@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_it_counts_over_all_images(convert):
    pixels = counted(convert([[0.0, 1.0]]), convert([[-20.0, 173.0], [0.5, 0.5]]))
    assert (pixels.minimum, pixels.maximum, pixels.outside, pixels.total) == (-20, 173, 2, 6)
    assert pixels.share_outside == pytest.approx(1 / 3)
    assert all(word in pixels.warning for word in ("[0, 1]", "-20", "173", "33%"))
    assert counted(convert([0.5])) + pixels == counted(convert([[0.0, 1.0], [-20.0, 173.0]]), convert([0.5, 0.5, 0.5]))


@pytest.mark.parametrize(
    ("images", "warned"),
    [
        (np.linspace(0, 1, 1000), False),
        (np.linspace(-0.06, 1.1, 1000), False),  # RSGUNet's
        (np.r_[np.full(990, 0.5), np.full(10, 5.0)], False),
        (np.r_[np.full(970, 0.5), np.full(30, 5.0)], True),
        (np.linspace(-0.5, 1, 1000), True),
        (np.empty(0, np.float32).reshape(0), False),
    ],
)
def test_it_warns_of_what_is_no_picture(images, warned):
    pixels = counted(images) if images.size else PixelRange()
    assert (pixels.warning is not None) is warned
