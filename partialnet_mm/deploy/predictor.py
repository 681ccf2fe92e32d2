# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Runs the ONNX file of a whole model on images. Needs numpy, onnxruntime and Pillow only."""
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ._images import Prepared, make_step, read_picture

if TYPE_CHECKING:
    from PIL import Image

try:
    import onnxruntime
except ImportError as error:
    raise ImportError(f'onnxruntime must be installed to run ONNX files: pip install onnxruntime ({error})') from error

#: The outputs that the file of each task must have.
OUTPUTS = dict(
    classification=('probabilities', ), detection=('boxes', 'scores', 'labels'), segmentation=('class_map', ))


@dataclass(frozen=True)
class Metadata:
    """What the file of a whole model says of itself.

    Args:
        task: 'classification', 'detection' or 'segmentation'.
        classes: Names by label.
        preprocessing: The steps from a picture to the network's input.
        exif: Whether pictures are turned as their EXIF orientation says.
        palette: Colours (R, G, B) by label, for each class or for more, or None.
        category_ids: COCO's ids by label, or None.
        score_threshold: Lowest score of a detection that is drawn. Defaults to 0.3.
        mask_threshold: Lowest probability of a pixel of a mask. Defaults to 0.5.
        min_size: Least height and width of the network's input. Defaults to 1.
    """

    task: str
    classes: list[str]
    preprocessing: list[dict]
    exif: bool
    palette: list[list[int]] | None = None
    category_ids: list[int] | None = None
    score_threshold: float = 0.3
    mask_threshold: float = 0.5
    min_size: int = 1

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> 'Metadata':
        """The metadata of an ONNX file.

        Raises:
            ValueError: If an entry is missing or has another form.
        """
        if 'task' not in texts:
            raise ValueError("its metadata has no 'task', so it is not the file of a whole model: "
                             'tools/deployment/export_onnx.py writes one if it is called without --backbone')
        if texts['task'] not in OUTPUTS:
            raise ValueError(f"its metadata 'task' is {texts['task']!r}; allowed are {list(OUTPUTS)}")

        def a_list_of(*types: type) -> Callable[[Any], bool]:
            return lambda value: isinstance(value, list) and all(isinstance(entry, types) for entry in value)

        def a_number(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool)

        forms = dict(
            classes=('a list of names', a_list_of(str)), preprocessing=('a list of steps', a_list_of(dict)),
            exif=('true or false', lambda value: isinstance(value, bool)),
            palette=('a list of colours', lambda value: a_list_of(list)(value) and all(map(_is_colour, value))),
            category_ids=('a list of whole numbers', a_list_of(int)), score_threshold=('a number', a_number),
            mask_threshold=('a number', a_number), min_size=('a number', a_number))
        values: dict[str, Any] = {}
        for name, (form, fits) in forms.items():
            if name not in texts:
                if name in ('classes', 'preprocessing', 'exif'):
                    raise ValueError(f'its metadata has no {name!r}')
                continue
            try:
                values[name] = json.loads(texts[name])
            except ValueError:
                values[name] = None
            if not fits(values[name]):
                raise ValueError(f'its metadata {name!r} must be {form}, got {texts[name][:80]!r}')
        # A config of few classes may keep the colours of its base.
        for name in ('palette', 'category_ids'):
            if name in values and len(values[name]) < len(values['classes']):
                raise ValueError(f'its metadata {name!r} has {len(values[name])} entries for {len(values["classes"])} '
                                 'classes')
        steps = [step.get('type') for step in values['preprocessing']]
        if texts['task'] == 'segmentation' and 'center_crop' in steps:
            raise ValueError("its preprocessing has 'center_crop', outside of which a segmentation has no classes")
        return cls(task=texts['task'], **values)


def _is_colour(value: list) -> bool:
    return len(value) == 3 and all(isinstance(level, int) and 0 <= level <= 255 for level in value)


@dataclass(frozen=True, eq=False)
class Result:
    """What a model found in one picture. What a task does not give is None.

    Args:
        metadata: Of the model.
        picture: (H, W, 3), RGB, uint8, turned upright where ``metadata.exif``.
        boxes: Detection: (N, 4), x1, y1, x2, y2 in pixels of the picture.
        scores: Detection: (N, ), from high to low.
        labels: Detection: (N, ), indices of ``metadata.classes``.
        mask_probabilities: Detection with masks: (N, h, w), each over its box; :attr:`masks` has them on the picture.
        probabilities: Classification: (classes, ).
        class_map: Segmentation: (H, W), uint8, the label of each pixel.
    """

    metadata: Metadata = field(repr=False)
    picture: np.ndarray = field(repr=False)
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    mask_probabilities: np.ndarray | None = field(default=None, repr=False)
    probabilities: np.ndarray | None = field(default=None, repr=False)
    class_map: np.ndarray | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str] | None:
        """Detection: the class of each box."""
        return None if self.labels is None else [self.metadata.classes[label] for label in self.labels]

    @property
    def masks(self) -> np.ndarray | None:
        """Detection with masks: (N, H, W), bool, in pixels of the picture. Computed at each access."""
        if self.mask_probabilities is None:
            return None
        masks = np.zeros((len(self.boxes), *self.picture.shape[:2]), bool)
        for mask, (part, (rows, columns)) in zip(masks, self.mask_parts()):
            mask[rows, columns] = part
        return masks

    def mask_parts(self) -> Iterator[tuple[np.ndarray, tuple[slice, slice]]]:
        """For each box, the part of its mask (bool) that may be set, and its rows and columns in the picture."""
        for box, probabilities in zip(self.boxes, self.mask_probabilities):
            yield paste_mask(probabilities, box, self.picture.shape[:2], self.metadata.mask_threshold)

    def top(self, count: int = 5) -> list[tuple[int, str, float]]:
        """Classification: label, class and probability of the most probable classes, the best first."""
        best = np.argsort(-self.probabilities, kind='stable')[:count]
        return [(int(label), self.metadata.classes[label], float(self.probabilities[label])) for label in best]

    def draw(self, score_threshold: float | None = None) -> 'Image.Image':
        """The picture with what was found: boxes, masks, classes and scores; or classes in colour.

        Args:
            score_threshold: Lowest score of a detection that is drawn. Defaults to the model's own.
        """
        from ._drawing import draw
        return draw(self, self.metadata.score_threshold if score_threshold is None else score_threshold)


class Predictor:
    """The ONNX file of a whole model, as a function of images.

    ``Predictor('model.onnx')('image.jpg')`` is a :class:`Result`.

    Args:
        path: A file that ``tools/deployment/export_onnx.py`` wrote.
        threads: Threads of an operator. Defaults to None, one per core.
        providers: onnxruntime's execution providers, the preferred one first. Defaults to the CPU.

    Raises:
        ValueError: If the file cannot be used, or a provider is not available.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None,
                 providers: Sequence[str] = ('CPUExecutionProvider', )) -> None:
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise ValueError(f'model {path!r} does not exist')
        known = onnxruntime.get_available_providers()
        if not set(providers) <= set(known):
            raise ValueError(f'providers must be of {known}, which this onnxruntime has; got {list(providers)}')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; they are raised as well
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=list(providers))
        except Exception as error:  # onnxruntime's own types
            raise ValueError(f'onnxruntime cannot load the model {path!r}: {_one_line(error)}') from error
        try:
            #: What the file says of itself.
            self.metadata = Metadata.from_texts(self._session.get_modelmeta().custom_metadata_map)
            self._steps = [make_step(step) for step in self.metadata.preprocessing]
            self._check_graph()
        except ValueError as error:
            raise ValueError(f'model {path!r} cannot be used: {error}') from error

    def _check_graph(self) -> None:
        inputs = [(entry.name, entry.type, len(entry.shape)) for entry in self._session.get_inputs()]
        if [entry[1:] for entry in inputs] != [('tensor(uint8)', 4)]:
            raise ValueError(f'it must have one input, images (B, H, W, 3) of uint8; it has {inputs}')
        self._input, shape = inputs[0][0], self._session.get_inputs()[0].shape
        self._size = tuple(shape[1:3]) if all(isinstance(side, int) for side in shape[1:3]) else None
        self._outputs = [output.name for output in self._session.get_outputs()]
        missing = [name for name in OUTPUTS[self.metadata.task] if name not in self._outputs]
        if missing:
            raise ValueError(f'it has no output {missing}, which a file for {self.metadata.task} must have; it has '
                             f'{self._outputs}')

    def __call__(self, image: 'str | os.PathLike | Image.Image | np.ndarray') -> Result:
        """What the model finds in an image: a file, an image of Pillow, or an array (H, W, 3), RGB, uint8.

        Raises:
            ValueError: If the image cannot be read or used.
            OSError: If there is no such file.
        """
        picture = read_picture(image, self.metadata.exif)
        prepared = Prepared(picture)
        for step in self._steps:
            prepared = step(prepared)
        height, width = prepared.image.shape[:2]
        if min(height, width) < self.metadata.min_size:  # some graphs answer wrongly and raise nothing
            raise ValueError(f'the image has {width} x {height} pixels once prepared; the model needs at least '
                             f'{self.metadata.min_size} x {self.metadata.min_size}')
        if self._size not in (None, (height, width)):
            raise ValueError(f'the image has {width} x {height} pixels once prepared; the model takes '
                             f'{self._size[1]} x {self._size[0]} only, as it was exported with --static')
        images = np.ascontiguousarray(prepared.image[None])
        try:
            found = self._session.run(None, {self._input: images})
        except Exception as error:  # onnxruntime's own types
            raise ValueError(f'onnxruntime fails on {width} x {height} pixels: {_one_line(error)}') from error
        outputs = {name: output[0] for name, output in zip(self._outputs, found)}
        if self.metadata.task == 'classification':
            return Result(self.metadata, picture, probabilities=outputs['probabilities'])
        if self.metadata.task == 'segmentation':
            return Result(self.metadata, picture, class_map=_on_picture(outputs['class_map'], prepared, picture))
        used = outputs['labels'] >= 0
        boxes = (outputs['boxes'][used] + np.tile(np.float32(prepared.corner), 2)) / np.tile(
            np.float32(prepared.scale), 2)
        masks = outputs['masks'][used] if 'masks' in outputs else None
        return Result(self.metadata, picture, boxes, outputs['scores'][used], outputs['labels'][used], masks)


def _on_picture(class_map: np.ndarray, prepared: Prepared, picture: np.ndarray) -> np.ndarray:
    """The nearest label for the centre of each pixel of a picture; padding belongs to no pixel."""
    rows, columns = (
        np.clip(((np.arange(length) + 0.5) * scale - corner).astype(np.intp), 0, limit - 1)
        for length, scale, corner, limit in zip(picture.shape, prepared.scale[::-1], prepared.corner[::-1],
                                                class_map.shape))
    return class_map[rows][:, columns]


def paste_mask(probabilities: np.ndarray, box: np.ndarray, shape: tuple[int, int],
               threshold: float) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The mask of a box in a picture, as mmdet pastes it: bilinear at the centres of pixels, zero beside the box.

    Args:
        probabilities: (h, w), spread over the box.
        box: x1, y1, x2, y2 in pixels of the picture.
        shape: (H, W) of the picture.
        threshold: Lowest probability of a pixel of the mask.

    Returns:
        The mask (bool) of some rows and columns; and these as slices. The mask is empty in all other pixels.
    """
    slices, weights = [], []
    for axis in (0, 1):
        low, high = np.float32(box[1 - axis]), np.float32(box[3 - axis])
        start = min(max(int(np.floor(low)) - 1, 0), shape[axis])
        stop = max(min(int(np.ceil(high)) + 1, shape[axis]), start)
        cells = probabilities.shape[axis]
        centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
        if high > low:
            position = (centres - low) / (high - low) * cells - np.float32(0.5)
        else:  # all of it lies in one line, for which mmdet takes the middle
            position = np.full_like(centres, cells / 2 - 0.5)
        slices.append(slice(start, stop))
        weights.append(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells, dtype=np.float32))))
    return weights[0] @ probabilities @ weights[1].T >= threshold, (slices[0], slices[1])


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())[:300] or type(error).__name__
