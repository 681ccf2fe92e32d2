# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What the exporters of detectors share: operators that torch's exporter writes as standard ONNX, for batches of boxes.

Candidates of a batch are tensors (B, N, ...). A candidate that takes no part has the score :data:`UNUSED`. Sizes follow
the tensors in the graph, so one file serves all sizes of images.
"""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: Score of a candidate that takes no part; all others are at least 0.
UNUSED = -1.


class _NonMaxSuppression(torch.autograd.Function):
    """Selected (image, 0, candidate) (K, 3) from boxes (B, N, 4) and scores (B, 1, N)."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou_threshold: float, most: int | None) -> Tensor:
        from torchvision.ops import nms
        selected = [torch.zeros(0, 3, dtype=torch.long)]
        for image, (boxes_of_image, (scores_of_image, )) in enumerate(zip(boxes, scores)):
            rows = (scores_of_image > UNUSED).nonzero().flatten()
            rows = rows[nms(boxes_of_image[rows], scores_of_image[rows], iou_threshold)[:most]]
            selected.append(torch.stack([torch.full_like(rows, image), torch.zeros_like(rows), rows], 1))
        return torch.cat(selected)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou_threshold: float, most: int | None) -> Any:
        most = torch.iinfo(torch.int64).max if most is None else most
        limits = [torch.tensor([most]), torch.tensor([iou_threshold]), torch.tensor([UNUSED])]
        return g.op('NonMaxSuppression', boxes, scores, *[g.op('Constant', value_t=limit) for limit in limits])


class _RoIAlign(torch.autograd.Function):
    """Features (K, C, height, width) of boxes (K, 4), each in the image of its index (K, )."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, boxes: Tensor, images: Tensor, size: tuple[int, int], scale: float,
                sampling_ratio: int, aligned: bool) -> Tensor:
        from torchvision.ops import roi_align
        return roi_align(features, torch.cat([images[:, None].to(boxes), boxes], 1), size, scale, sampling_ratio,
                         aligned)

    @staticmethod
    def symbolic(g: Any, features: Any, boxes: Any, images: Any, size: tuple[int, int], scale: float,
                 sampling_ratio: int, aligned: bool) -> Any:
        return g.op('RoiAlign', features, boxes, images, output_height_i=size[0], output_width_i=size[1],
                    spatial_scale_f=scale, sampling_ratio_i=sampling_ratio, mode_s='avg',
                    coordinate_transformation_mode_s='half_pixel' if aligned else 'output_half_pixel')


def roi_align(features: Tensor, boxes: Tensor, images: Tensor, layer: nn.Module) -> Tensor:
    """What a RoIAlign layer of mmcv computes for boxes (K, 4), each in the image of its index (K, ) of the batch."""
    return _RoIAlign.apply(features, boxes, images, tuple(layer.output_size), float(layer.spatial_scale),
                           int(layer.sampling_ratio), bool(layer.aligned))


def at_most(length: int | Tensor, most: int) -> Tensor:
    """The smaller of a length, which is a tensor while torch traces, and a constant."""
    return torch.minimum(torch.as_tensor(length), torch.tensor(most))


def top_rows(scores: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """The highest scores (B, N) of each image in falling order, at most ``most``, and their rows; None keeps all."""
    length = scores.shape[1]
    return torch.topk(scores, torch.as_tensor(length) if most is None else at_most(length, most))


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """The rows (B, K) of each image, from values (B, N) or (B, N, D)."""
    if values.dim() == 2:
        return values.gather(1, rows)
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., 4) inside an image of the size (height, width)."""
    return torch.minimum(boxes.clamp(min=0), size.flip(0).repeat(2))


def decode(coder: nn.Module, priors: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Boxes (B, M, 4) that a coder of mmdet decodes from priors (B, N, 4 or 2) and ``deltas`` (B, N, 4 or more).

    More than 4 deltas are those of several boxes of a prior. Boxes are clipped to the image's size (height, width) if
    the coder clips.
    """
    from mmdet.structures.bbox import get_box_tensor
    boxes = get_box_tensor(coder.decode(priors.flatten(0, 1), deltas.flatten(0, 1)))
    boxes = boxes.reshape(deltas.shape[0], -1, 4)
    return clip_boxes(boxes, size) if coder.clip_border else boxes


def read_nms(cfg: Mapping | None) -> tuple[float, bool]:
    """``iou_threshold`` and ``class_agnostic`` of an ``nms`` of a test_cfg of mmdet.

    Raises:
        ValueError: If NonMaxSuppression of ONNX does not do the same.
    """
    if cfg is None:
        raise ValueError('test_cfg has no nms; ONNX files are written of detectors that suppress by nms, or have no '
                         'nms in their method')
    given = dict(cfg)
    kind = given.pop('type', 'nms')
    if kind != 'nms':
        raise ValueError(f'test_cfg.nms.type is {kind!r}, which NonMaxSuppression of ONNX cannot express; '
                         "what can be is 'nms'")
    threshold = given.pop('iou_threshold', given.pop('iou_thr', None))
    agnostic = given.pop('class_agnostic', False)
    given.pop('split_thr', None)  # a matter of memory
    # What the host's defaults do is expressed: no offset, no threshold, no limit.
    defaults = dict(offset=0, score_threshold=0, max_num=-1)
    unknown = {name: value for name, value in given.items() if name not in defaults or value != defaults[name]}
    if threshold is None or unknown:
        raise ValueError(f'test_cfg.nms is {dict(cfg)}, which NonMaxSuppression of ONNX cannot express; needed is an '
                         'iou_threshold, and class_agnostic can be given')
    return float(threshold), bool(agnostic)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor | None, iou_threshold: float, most: int | None,
             least: int = 0) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within the groups of each image, as mmcv's ``batched_nms`` does it.

    Args:
        boxes: (B, N, 4), N at least 1.
        scores: (B, N), :data:`UNUSED` for candidates that take no part.
        groups: (B, N), the class or level of each candidate. None puts all into one group.
        iou_threshold: Of two boxes of a group with a greater IoU, the one with the lower score goes.
        most: Number of candidates that an image keeps at most. None keeps all.
        least: Number of columns at least, where that many candidates exist. Defaults to 0.

    Returns:
        Scores in falling order and rows, both (B, K). K is the number that the image with the most keeps; the rest of
        the other images is :data:`UNUSED`.
    """
    separate = boxes
    if groups is not None:
        taking_part = torch.where(scores[..., None] > UNUSED, boxes, torch.zeros_like(boxes))
        # Moved by more than the largest coordinate, boxes of different groups do not meet.
        separate = boxes + (groups.to(boxes) * (taking_part.amax((1, 2))[:, None] + 1))[..., None]
    # mmcv lets boxes with a negative width or height be; onnxruntime would exchange their corners.
    corners = separate.split(2, 2)
    separate = torch.cat([corners[0], torch.maximum(*corners)], 2)
    selected = _NonMaxSuppression.apply(separate, scores[:, None], iou_threshold, most)
    flat = selected[:, 0] * scores.shape[1] + selected[:, 2]
    kept = torch.zeros_like(scores).flatten().scatter(0, flat, torch.ones_like(flat, dtype=scores.dtype))
    remaining = torch.where(kept.reshape(scores.shape) > 0, scores, torch.full_like(scores, UNUSED))
    remaining, rows = top_rows(remaining, most)
    columns = (remaining > UNUSED).sum(1).max()
    if least:
        columns = torch.maximum(columns, at_most(remaining.shape[1], least))
    return remaining[:, :columns], rows[:, :columns]


def answers(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, K, 4), scores and labels (B, K) as a file gives them: unused rows are zero, with the label -1."""
    used = scores > UNUSED
    return (torch.where(used[..., None], boxes, torch.zeros_like(boxes)), scores.clamp(min=0),
            torch.where(used, labels, torch.full_like(labels, -1)))
