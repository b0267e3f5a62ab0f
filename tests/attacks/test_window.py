"""Square windows of images by index tensors and by positions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from robustres.attacks.geometry.window import window_index, window_positions


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.data())
def test_window_positions_are_the_pixels_of_the_window_index(
    channels: int, height: int, width: int, side: int, data: st.DataObject
) -> None:
    side = min(side, height, width)
    top = torch.tensor(data.draw(st.lists(st.integers(0, height - side), min_size=3, max_size=3)))
    left = torch.tensor(data.draw(st.lists(st.integers(0, width - side), min_size=3, max_size=3)))
    images, batch = torch.rand(5, channels, height, width), torch.tensor([4, 0, 2])
    positions = window_positions(batch, top, left, (channels, height, width), side)
    assert torch.equal(images.take(positions), images[window_index(batch, top, left, channels, side)])
