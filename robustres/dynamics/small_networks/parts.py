"""What a demonstration trains on and what it measures on."""

from dataclasses import dataclass

from robustres.data import ImageSet, load_data


@dataclass(frozen=True, eq=False)
class Parts:
    """train: images to fit. test: images never seen in training, of the same shape and classes."""

    train: ImageSet
    test: ImageSet

    @property
    def pixels(self) -> int:
        """Numbers in one image."""
        return self.test.images[0].numel()

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.test.classes


def digits_parts() -> Parts:
    """The embedded digits: what every demonstration uses unless it is given other data."""
    return Parts(load_data("digits", split="train"), load_data("digits"))
