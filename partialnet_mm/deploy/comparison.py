# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Comparison of the ONNX model of a whole model, in onnxruntime, with the test of the host library in PyTorch."""
import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from partialnet_mm.deploy.evaluation import paste_masks
from partialnet_mm.deploy.onnx_export import relative_difference, run_session, session_of
from partialnet_mm.deploy.whole_model import WholeModel, as_host_batch

if TYPE_CHECKING:
    import onnx

#: Largest difference of probabilities and logits, over the largest value.
TOLERANCE = 1e-4
#: Largest difference of a box, over the image's longer side, and of a score, over the highest of the image.
BOX_TOLERANCE = SCORE_TOLERANCE = 1e-3
#: Fraction of objects and of the masks' pixels that may differ: boxes that overlap by just the threshold of the
#: suppression, and pixels with just the threshold of the masks, fall to either side by rounding.
FRACTION = 0.02


class Comparison(NamedTuple):
    """The outcome for one shape of images."""

    text: str
    equal: bool


def compare(exported: 'onnx.ModelProto', whole: WholeModel, model: nn.Module,
            shapes: Sequence[tuple[int, int, int]]) -> Iterator[Comparison]:
    """Compares an ONNX model with ``model.test_step`` on random images of each shape (B, H, W).

    - Probabilities and the logits of class maps are equal to 1e-4 of the largest value. The class map has, at each
      pixel, a class of that highest logit.
    - Objects are compared with the threshold of scores lowered to 0, since random images have few of high scores: each
      object of PyTorch must have its own one in the ONNX model with the same label, score and box, and the other way
      round; 2 % may be missing. Then the model as it is must give just those of them above the threshold.

    Args:
        exported: The ONNX model of ``whole``.
        whole: The function that was exported.
        model: The model that it was made of, in evaluation mode.
        shapes: (B, H, W) of each batch.

    Raises:
        ValueError: If onnxruntime cannot load or run the ONNX model.
    """
    kind = dict(classification=_compare_classes, segmentation=_compare_maps, detection=_compare_objects)[whole.task]
    yield from kind(exported, whole, model, [_images(index, *shape) for index, shape in enumerate(shapes)])


def _images(seed: int, batch: int, height: int, width: int) -> Tensor:
    """Smooth random images (B, H, W, 3) of bytes, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, height // 24 + 2, width // 24 + 2, generator=generator)
    images = F.interpolate(coarse, (height, width), mode='bilinear', align_corners=True)
    images = images + 0.1 * torch.rand(images.shape, generator=generator)
    return (images / images.amax() * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def _host_test(model: nn.Module, images: Tensor) -> list:
    return model.test_step(as_host_batch(images, model.data_preprocessor))


def _compare_classes(exported: 'onnx.ModelProto', whole: WholeModel, model: nn.Module,
                     batches: list[Tensor]) -> Iterator[Comparison]:
    session = session_of(exported)
    for images in batches:
        wanted = torch.stack([sample.pred_score for sample in _host_test(model, images)])
        difference = relative_difference(run_session(session, images), [wanted])
        yield _by_difference(images, difference, difference < TOLERANCE)


def _compare_maps(exported: 'onnx.ModelProto', whole: WholeModel, model: nn.Module,
                  batches: list[Tensor]) -> Iterator[Comparison]:
    with_logits = copy.deepcopy(exported)
    producers = {name: node for node in exported.graph.node for name in node.output}
    node = producers[exported.graph.output[0].name]
    while node.op_type not in ('ArgMax', 'Sigmoid'):
        node = producers[node.input[0]]
    del with_logits.graph.output[:]
    output = with_logits.graph.output.add()
    output.name = node.input[0] if node.op_type == 'ArgMax' else node.output[0]
    output.type.tensor_type.elem_type = 1  # float32
    logits_session, session = session_of(with_logits), session_of(exported)
    for images in batches:
        wanted = torch.stack([sample.seg_logits.data for sample in _host_test(model, images)])
        logits, = run_session(logits_session, images)
        difference = relative_difference([logits.reshape(wanted.shape) if logits.numel() == wanted.numel() else logits],
                                         [wanted])
        class_map, = run_session(session, images)
        equal = difference < TOLERANCE and class_map.shape == wanted[:, 0].shape
        if equal and wanted.shape[1] > 1:
            chosen = wanted.gather(1, class_map[:, None].long())[:, 0]
            equal = bool((chosen >= wanted.amax(1) - 2 * TOLERANCE * wanted.abs().max()).all())
        elif equal:
            clear = (wanted[:, 0] - model.decode_head.threshold).abs() > TOLERANCE
            equal = bool(((class_map == 1) == (wanted[:, 0] > model.decode_head.threshold))[clear].all())
        yield _by_difference(images, difference, equal)


def _by_difference(images: Tensor, difference: float, equal: bool) -> Comparison:
    return Comparison(f'{_shape(images)}: largest difference {difference:.1e} of the largest value', equal)


def _shape(images: Tensor) -> str:
    return ' x '.join(map(str, images.shape[:3]))


def _compare_objects(exported: 'onnx.ModelProto', whole: WholeModel, model: nn.Module,
                     batches: list[Tensor]) -> Iterator[Comparison]:
    lowered = copy.deepcopy(exported)
    threshold = 0.
    for initializer in lowered.graph.initializer:
        if initializer.name.endswith('score_threshold'):
            threshold = whole.network.score_threshold.item()
            initializer.raw_data = bytes(len(initializer.raw_data))
    session, lowered_session = session_of(exported), session_of(lowered)
    names = list(whole.outputs)
    for images in batches:
        with _all_scores(model):
            wanted = [sample.pred_instances for sample in _host_test(model, images)]
        found = dict(zip(names, run_session(lowered_session, images)))
        as_it_is = dict(zip(names, run_session(session, images)))
        number, missing, pixels, wrong_pixels = 0, 0, 1, 0
        same_above = True
        for index, want in enumerate(wanted):
            used = found['labels'][index] >= 0
            got = InstanceData(**{name: values[index][used] for name, values in found.items() if name != 'boxes'},
                               bboxes=found['boxes'][index][used])
            pairs, lost = _match(want, got, max(images.shape[1:3]))
            number += len(want) + len(got)
            missing += lost
            if 'masks' in names and pairs:
                ours, theirs = (torch.tensor(rows) for rows in zip(*pairs))
                pasted = paste_masks(got.masks[theirs], got.bboxes[theirs], tuple(images.shape[1:3]),
                                     model.roi_head.test_cfg.mask_thr_binary)
                pixels += int((pasted | want.masks[ours]).sum())
                wrong_pixels += int((pasted ^ want.masks[ours]).sum())
            above = as_it_is['labels'][index] >= 0
            same_above &= _same_rows(as_it_is['scores'][index][above], got.scores[got.scores > threshold])
            same_above &= _same_rows(as_it_is['boxes'][index][above], got.bboxes[got.scores > threshold])
        equal = number > 0 and missing <= FRACTION * number and wrong_pixels <= FRACTION * pixels and same_above
        text = f'{_shape(images)}: {missing} of {number} objects differ'
        if 'masks' in names:
            text += f', {wrong_pixels} of {pixels} pixels of masks'
        yield Comparison(text if same_above else f'{text}, and others are above the threshold {threshold:g}', equal)


@contextlib.contextmanager
def _all_scores(model: nn.Module) -> Iterator[None]:
    """The host's test without its threshold of scores."""
    head = model.roi_head if getattr(model, 'roi_head', None) is not None else model.bbox_head
    threshold = head.test_cfg.get('score_thr')
    if threshold is None:
        yield
        return
    head.test_cfg.score_thr = 0.
    try:
        yield
    finally:
        head.test_cfg.score_thr = threshold


def _match(want: InstanceData, got: InstanceData, side: int) -> tuple[list[tuple[int, int]], int]:
    """Pairs of equal objects, and the number of objects on both sides that have no partner.

    An object without one is not counted if its score is that of the last of the other side: which of several equal
    scores are among the most that an image may have is up to rounding.
    """
    boxes = (want.bboxes[:, None] - got.bboxes).abs().amax(2) / side
    highest = want.scores.max() if len(want) else 1.
    equal = ((boxes <= BOX_TOLERANCE) & (want.labels[:, None] == got.labels)
             & ((want.scores[:, None] - got.scores).abs() <= SCORE_TOLERANCE * highest))
    distances = torch.where(equal, boxes, torch.full_like(boxes, float('inf')))
    pairs = []
    for row in range(len(want)):
        if len(got) and distances[row].min() < float('inf'):
            pairs.append((row, int(distances[row].argmin())))
            distances[:, pairs[-1][1]] = float('inf')
    lost = 0
    for side_of_pair, ours, theirs in ((0, want, got), (1, got, want)):
        alone = torch.ones(len(ours), dtype=torch.bool)
        alone[[pair[side_of_pair] for pair in pairs]] = False
        last = theirs.scores.min() * (1 + TOLERANCE) if len(theirs) else -1.
        lost += int((ours.scores[alone] > last).sum())
    return pairs, lost


def _same_rows(values: Tensor, wanted: Tensor) -> bool:
    return values.shape == wanted.shape and torch.allclose(values, wanted, 1e-5, 1e-5)
