"""The training and test images of a demonstration."""

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
    """The embedded digits, the default data of every demonstration."""
    return Parts(load_data("digits", split="train"), load_data("digits"))
