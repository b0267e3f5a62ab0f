"""The site of a block in a network: the arguments from which every block is built."""

from dataclasses import dataclass

from robustres.models.constraints.activations import ActivationName


@dataclass(frozen=True)
class Site:
    """The features that a block receives and the settings it may use.

    channels, size: of the incoming features, (C, H, W) with size = (H, W). kernel: side of the convolutions, odd.
    stride: 2 if an ordinary block halves the image and doubles the width. scale: the step or the share of the branch,
        for the blocks that have one.
    """

    channels: int
    size: tuple[int, int]
    kernel: int = 3
    activation: ActivationName = "relu"
    batch_norm: bool = False
    stride: int = 1
    scale: float = 0.5

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the incoming features."""
        return (self.channels, *self.size)
