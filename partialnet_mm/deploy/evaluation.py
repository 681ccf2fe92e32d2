# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The metrics of a config for the ONNX file of a whole model."""
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from partialnet_mm.deploy.onnx_export import run_session, session_of

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: From a batch of the config's test_dataloader to data samples with predictions, as ``model.test_step`` is one.
Predict = Callable[[dict], Sequence[Any]]


def evaluate(predict: Predict, cfg: Config, images: int | None = None) -> dict[str, float]:
    """The metrics of the config's test_evaluator on its test data, image by image.

    Args:
        predict: :class:`OnnxPredictions`, or the ``test_step`` of a model.
        cfg: With ``test_dataloader`` and ``test_evaluator``.
        images: Number of images, from the first. Defaults to all.

    Raises:
        ValueError: If the file was made for another number or order of classes than the test data has.
    """
    loader = _test_loader(cfg)
    _require_classes(getattr(predict, 'classes', None), loader.dataset.metainfo.get('classes'))
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = loader.dataset.metainfo
    number = 0
    for batch in islice(loader, images):
        samples = predict(batch)
        evaluator.process(data_samples=samples, data_batch=batch)
        number += len(samples)
    return evaluator.evaluate(number)


class OnnxPredictions:
    """The ONNX file of a whole model as a function from the host's batches to data samples with predictions.

    Args:
        model: The model of the file, or the path of the file.

    Attributes:
        classes: Names of the model's classes, by label, or None.

    Raises:
        ValueError: If onnxruntime does not load it, or it is not of a whole model.
    """

    def __init__(self, model: 'onnx.ModelProto | str') -> None:
        self._session = session_of(model)
        self._names = [output.name for output in self._session.get_outputs()]
        self._fill = dict(probabilities=_fill_class, class_map=_fill_map, boxes=_fill_objects).get(self._names[0])
        if self._fill is None:
            raise ValueError(f'the ONNX model gives {", ".join(self._names)}: no whole model has these outputs')
        metadata = self._session.get_modelmeta().custom_metadata_map
        self._mask_threshold = float(metadata.get('mask_threshold', 0.5))
        self.classes: list[str] | None = json.loads(metadata.get('classes', 'null'))

    def __call__(self, batch: dict) -> list[Any]:
        found = dict(zip(self._names, run_session(self._session, images_of(batch))))
        samples = list(batch['data_samples'])
        for index, sample in enumerate(samples):
            self._fill(sample, {name: values[index] for name, values in found.items()}, self._mask_threshold)
        return samples


def calibration_images(cfg: Config, images: int | None = None) -> Iterator[dict[str, 'np.ndarray']]:
    """Inputs of the ONNX file of a whole model, image by image, from the config's test data."""
    for batch in islice(_test_loader(cfg), images):
        yield dict(images=images_of(batch).numpy())


def images_of(batch: dict) -> Tensor:
    """The images of a host's batch as the input of a whole model: RGB (B, H, W, 3), bytes."""
    inputs = batch['inputs']
    stacked = inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))
    return stacked.flip(1).permute(0, 2, 3, 1).contiguous()


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Masks (K, height, width) of an image, as mmdet makes them of mask probabilities (K, h, w) in boxes (K, 4)."""
    from mmdet.models import FCNMaskHead
    head = FCNMaskHead(num_convs=0, num_classes=1, class_agnostic=True)
    results = InstanceData(bboxes=boxes.clone(), labels=torch.zeros(len(boxes), dtype=torch.long))
    results, = head.predict_by_feat(
        [masks[:, None]], [results], [dict(ori_shape=size, scale_factor=(1., 1.))],
        ConfigDict(mask_thr_binary=threshold), rescale=True, activate_map=True)
    return results.masks


def _require_classes(ours: Sequence[str] | None, theirs: Sequence[str] | None) -> None:
    if not ours or not theirs:
        return
    if len(ours) != len(theirs):
        raise ValueError(f'the model has {len(ours)} classes and the test data {len(theirs)}: needed is the config '
                         'that the model was exported with')
    labels = {name: label for label, name in enumerate(theirs)}  # classes may have other names in the data
    moved = next((name for label, name in enumerate(ours) if labels.get(name, label) != label), None)
    if moved is not None:
        raise ValueError(f'class {moved!r} has label {ours.index(moved)} in the model and {labels[moved]} in the test '
                         'data: needed is the config that the model was exported with')


def _test_loader(cfg: Config) -> DataLoader:
    init_default_scope(cfg.default_scope)
    given = dict(cfg.test_dataloader, batch_size=1, num_workers=0, persistent_workers=False)
    for name in ('prefetch_factor', 'pin_memory'):
        given.pop(name, None)
    return Runner.build_dataloader(given)


def _fill_class(sample: Any, found: dict[str, Tensor], mask_threshold: float) -> None:
    sample.set_pred_score(found['probabilities']).set_pred_label(found['probabilities'].argmax(keepdim=True))


def _fill_map(sample: Any, found: dict[str, Tensor], mask_threshold: float) -> None:
    size = sample.metainfo.get('ori_shape', found['class_map'].shape)[:2]
    sample.pred_sem_seg = PixelData(data=F.interpolate(found['class_map'][None, None].float(), size)[0].long())


def _fill_objects(sample: Any, found: dict[str, Tensor], mask_threshold: float) -> None:
    used = found['labels'] >= 0
    scale = torch.tensor(sample.metainfo.get('scale_factor', (1., 1.))).repeat(2)
    sample.pred_instances = InstanceData(bboxes=found['boxes'][used] / scale, scores=found['scores'][used],
                                         labels=found['labels'][used])
    if 'masks' in found:
        sample.pred_instances.masks = paste_masks(found['masks'][used], sample.pred_instances.bboxes,
                                                  sample.metainfo['ori_shape'][:2], mask_threshold)
