"""Scenes out of the garments of Fashion-MNIST: coloured, scaled, placed on a background that is not empty.

All arithmetic is on whole numbers and all resizing bit-exact, so that a scene is the same on every machine.
"""
from dataclasses import dataclass
from typing import List, Optional, Tuple

import cv2
import numpy as np
from numpy import ndarray
from numpy.random import Generator

CLASSES = ('t-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle-boot')
# of a garment's pixels after resizing; below it there is the border's blur
VISIBLE = 20
# a garment may lose this share of its pixels to those in front of it, in percent
MOST_HIDDEN = 30


@dataclass
class Garment:
    """One garment of a scene.

    Args:
        label (int): Class, the index in ``CLASSES``.
        source (int): Which image of Fashion-MNIST's split it is.
        mask (ndarray): Its visible pixels, bool of the scene's (H, W).
    """

    label: int
    source: int
    mask: ndarray


def render(rng: Generator, images: ndarray, labels: ndarray, size: int, number: int,
           scale: Tuple[int, int]) -> Tuple[ndarray, List[Garment]]:
    """Draw a scene.

    Args:
        rng (Generator): Source of everything random.
        images (ndarray): Garments to choose from, uint8 of shape (N, 28, 28), 0 around them.
        labels (ndarray): Their classes, of shape (N,).
        size (int): Height and width of the scene.
        number (int): Garments wanted; those that find no place are left out, never the first.
        scale (tuple[int, int]): Smallest and largest height of a garment, in percent of the scene's.

    Returns:
        tuple[ndarray, list[Garment]]: BGR picture, uint8 of shape (size, size, 3), and its garments, back to front.
    """
    picture = _background(rng, images, size)
    garments: List[Garment] = []
    for source in rng.choice(len(images), number, replace=False):
        height, width = (int(size * part) // 100 for part in _shape(rng, scale))
        pixels, mask = _garment(rng, images[source], height, width)
        place = _place(rng, mask, garments, size)
        if place is None:
            continue
        whole = np.zeros((size, size), bool)
        whole[place] = mask
        for other in garments:
            other.mask &= ~whole
        picture[place][mask] = pixels[mask]
        garments.append(Garment(int(labels[source]), int(source), whole))
    noise = rng.integers(-10, 11, picture.shape, np.int16)
    return np.clip(picture.astype(np.int16) + noise, 0, 255).astype(np.uint8), garments


def _shape(rng: Generator, scale: Tuple[int, int]) -> Tuple[int, int]:
    height = int(rng.integers(scale[0], scale[1] + 1))
    return height, min(100, height * int(rng.integers(80, 121)) // 100)


def _background(rng: Generator, images: ndarray, size: int) -> ndarray:
    """Soft colours with the weave of a garment, far too large to be taken for one."""
    colours = _resized(rng.integers(0, 200, (4, 4, 3), np.uint8), size, size).astype(np.int16)
    top, left = rng.integers(0, 28 - 10, 2)
    cloth = _resized(images[rng.integers(len(images))][top:top + 10, left:left + 10], size, size).astype(np.int16)
    return np.clip(colours + (cloth - 128)[..., None] // 3, 0, 255).astype(np.uint8)


def _garment(rng: Generator, image: ndarray, height: int, width: int) -> Tuple[ndarray, ndarray]:
    if rng.integers(2):
        image = image[:, ::-1]
    grey = _resized(np.ascontiguousarray(image), height, width)
    outlines, _ = cv2.findContours((grey > VISIBLE).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    mask = np.zeros(grey.shape, np.uint8)
    # filled: what is black within a garment belongs to it; specks do not
    cv2.drawContours(mask, [line for line in outlines if cv2.boundingRect(line)[2] > 1], -1, 1, cv2.FILLED)
    colour = rng.integers(90, 256, 3).astype(np.int32)
    pixels = (40 + grey.astype(np.int32)[..., None] * 215 // 255) * colour // 255
    return pixels.astype(np.uint8), mask.astype(bool)


def _place(rng: Generator, mask: ndarray, garments: List[Garment], size: int) -> Optional[Tuple[slice, slice]]:
    """Where a garment leaves enough of the others visible; None if no place is found."""
    height, width = mask.shape
    if not mask.any():
        return None
    for _ in range(10):
        top, left = (int(rng.integers(0, size - length + 1)) for length in (height, width))
        place = slice(top, top + height), slice(left, left + width)
        if all(100 * np.count_nonzero(other.mask[place] & mask) <= MOST_HIDDEN * np.count_nonzero(other.mask)
               for other in garments):
            return place
    return None


def _resized(image: ndarray, height: int, width: int) -> ndarray:
    # the one linear interpolation of OpenCV that gives the same bits everywhere
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
