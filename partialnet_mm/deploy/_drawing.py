# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Draws the results of a predictor with Pillow."""
import colorsys
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .predictor import Metadata, Result

Colour = tuple[int, int, int]
#: How much of a picture the colours of masks and of segmentations hide.
OPACITY = 0.5


def draw(result: 'Result', score_threshold: float) -> Image.Image:
    """The picture of a result with what was found in it."""
    picture = result.picture.copy()
    colours = colours_of(result.metadata)
    if result.class_map is not None:
        return _draw_segmentation(result, picture, colours)
    if result.boxes is None:
        image = Image.fromarray(picture)
        _Labels(image).column([f'{name} {probability:.3f}' for _, name, probability in result.top()])
        return image
    # The best detection comes last, on top of the others.
    shown = [index for index in np.argsort(result.scores, kind='stable') if result.scores[index] >= score_threshold]
    if result.mask_probabilities is not None:
        parts = list(result.mask_parts())
        for index in shown:
            mask, (rows, columns) = parts[index]
            _blend(picture[rows, columns], mask, colours[result.labels[index]])
    image = Image.fromarray(picture)
    pen, labels = ImageDraw.Draw(image), _Labels(image)
    width = max(2, round(min(image.size) / 300))
    for index in shown:
        x1, y1, x2, y2 = map(float, result.boxes[index])
        colour = colours[result.labels[index]]
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
        labels.above(f'{result.names[index]} {result.scores[index]:.2f}', (x1, y1), colour)
    return image


def colours_of(metadata: 'Metadata') -> list[Colour]:
    """A colour for each label: the model's own, or hues that lie far apart."""
    if metadata.palette is not None:
        return [tuple(colour) for colour in metadata.palette[:len(metadata.classes)]]
    golden = (5**0.5 - 1) / 2
    return [tuple(round(255 * level) for level in colorsys.hsv_to_rgb(index * golden % 1, 0.8, (1, 0.75)[index % 2]))
            for index in range(len(metadata.classes))]


def class_map_image(result: 'Result') -> Image.Image:
    """The label of each pixel, with a palette of the classes' colours."""
    # A shorter palette would cut higher labels off in a PNG file.
    palette = np.zeros((256, 3), np.uint8)
    colours = colours_of(result.metadata)
    palette[:len(colours)] = colours
    image = Image.fromarray(result.class_map)
    image.putpalette(palette.tobytes())
    return image


def _draw_segmentation(result: 'Result', picture: np.ndarray, colours: list[Colour]) -> Image.Image:
    mask = result.class_map < len(colours)  # labels without a class, such as 255, stay uncoloured
    _blend(picture, mask, np.array(colours)[result.class_map[mask]])
    image = Image.fromarray(picture)
    present = [label for label in np.unique(result.class_map) if label < len(colours)]
    _Labels(image).column([result.metadata.classes[label] for label in present], [colours[label] for label in present])
    return image


def _blend(picture: np.ndarray, mask: np.ndarray, colour: Colour | np.ndarray) -> None:
    """Colours the pixels of a mask in place: by one colour, or by one for each of them."""
    picture[mask] = np.rint(picture[mask] * (1 - OPACITY) + np.asarray(colour) * OPACITY)


class _Labels:
    """Text on a filled ground, inside an image."""

    def __init__(self, image: Image.Image) -> None:
        self.pen, self.size = ImageDraw.Draw(image), image.size
        self.font = ImageFont.load_default(max(10, round(min(image.size) / 45)))

    def above(self, text: str, corner: tuple[float, float], colour: Colour) -> None:
        """A label above a corner; below it where there is no room above."""
        width, height = self._size(text)
        y = corner[1] - height
        self._write(text, (corner[0], y if y >= 0 else corner[1]), colour)

    def column(self, texts: list[str], colours: list[Colour] | None = None) -> None:
        """Labels below each other from the upper left corner on."""
        y = 0.
        for text, colour in zip(texts, colours or [(0, 0, 0)] * len(texts)):
            self._write(text, (0, y), colour)
            y += self._size(text)[1]

    def _size(self, text: str) -> tuple[float, float]:
        ascent, descent = self.font.getmetrics()
        return self.font.getlength(text) + 4, ascent + descent

    def _write(self, text: str, corner: tuple[float, float], colour: Colour) -> None:
        width, height = self._size(text)
        x, y = (max(0, min(at, limit - length))
                for at, limit, length in zip(corner, self.size, (width, height)))
        self.pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        self.pen.text((x + 2, y), text, fill=(0, 0, 0) if light else (255, 255, 255), font=self.font)
