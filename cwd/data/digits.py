"""scikit-learn's handwritten digits, 1,797 of 8 x 8 pixels, each somewhere on a larger canvas among pieces of others.

The images are real (Alpaydin & Kaynak 1998, optical recognition of handwritten digits, UCI) and come with the library.
As they are, any model gets them right. Shifted, in clutter, and with few examples, models differ; the canvases of the
held-out digits are made of held-out digits alone.
"""

from __future__ import annotations

import numpy as np

from cwd.data.images import ArrayImages, ImageData, fingerprint_of
from cwd.errors import UserError

DIGIT, PIECE = 8, 4  # pixels of a side
CLASSES = tuple("0123456789")


def make_digits(examples: int, canvas: int, clutter: int, views: int) -> ImageData:
    """The dataset: `views` canvases of each of the first `examples` digits to train on, and of each of the others.

    Args:
        canvas: pixels of a side, at least 10.
        clutter: pieces, of 4 x 4 pixels, of other digits on each canvas.

    Raises:
        UserError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise UserError(
            f"dataset=digits: needs scikit-learn ({error.name} is missing); pip install '.[vision]'"
        ) from error
    images, labels = load_digits(return_X_y=True)
    digits = (images.reshape(-1, DIGIT, DIGIT) * (255 / 16)).round().astype(np.uint8)
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(digits))
    train, rest = (np.repeat(part, views) for part in np.split(order, [examples]))
    sets = []
    for number, chosen in enumerate((train, rest)):
        pixels = _canvases(digits, chosen, canvas, clutter, number)
        sets.append(ArrayImages(pixels, labels[chosen].astype(np.int64), ("training digit", "held-out digit")[number]))
    content = (part.tobytes() for one in sets for part in (one.pixels, one.labels))
    return ImageData("digits", sets[0], sets[1], CLASSES, fingerprint_of(content))


def _canvases(digits: np.ndarray, chosen: np.ndarray, canvas: int, clutter: int, number: int) -> np.ndarray:
    """(n, canvas, canvas) uint8: clutter from digits of the same split, then the digit over it."""
    draw = np.random.Generator(np.random.Philox(key=1 + number))
    count = len(chosen)
    others = chosen[draw.integers(0, count, (count, clutter))]
    cut = draw.integers(0, DIGIT - PIECE + 1, (count, clutter, 2))
    piece_at = draw.integers(0, canvas - PIECE + 1, (count, clutter, 2))
    digit_at = draw.integers(0, canvas - DIGIT + 1, (count, 2))
    pixels = np.zeros((count, canvas, canvas), dtype=np.uint8)
    for i, image in enumerate(pixels):
        for other, (y, x), place in zip(others[i], cut[i], piece_at[i], strict=True):
            _paste(image, digits[other, y : y + PIECE, x : x + PIECE], place)
        _paste(image, digits[chosen[i]], digit_at[i])
    return pixels


def _paste(image: np.ndarray, piece: np.ndarray, place: np.ndarray) -> None:
    (y, x), size = place, len(piece)
    target = image[y : y + size, x : x + size]
    np.maximum(target, piece, out=target)
