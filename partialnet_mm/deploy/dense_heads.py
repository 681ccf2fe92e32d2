# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Single-stage detectors of mmdet as functions of images, for export as ONNX."""
import torch
from torch import Tensor, nn

from partialnet_mm.deploy.detector import Detector, require_methods
from partialnet_mm.deploy.operators import UNUSED, answers, at_most, decode, gather_rows, read_nms, suppress


class SingleStage(Detector):
    """A detector whose head leaves the choice of its boxes to mmdet's ``BaseDenseHead``, such as RetinaNet or RTMDet.

    The ``test_cfg`` of the head is expressed: ``score_thr``, ``nms_pre``, ``min_bbox_size``, ``nms``, ``max_per_img``.

    Args:
        model: The detector, in evaluation mode.

    Raises:
        ValueError: If a class or an option is not expressed. The message names it.
    """

    def __init__(self, model: nn.Module) -> None:
        from mmdet.models.detectors import SingleStageDetector
        head, cfg = model.bbox_head, model.bbox_head.test_cfg
        super().__init__(model, cfg.get('score_thr', 0))
        require_methods(model, SingleStageDetector, 'predict', 'extract_feat')
        self._require_head(head)
        for name in ('nms_pre', 'max_per_img'):
            if cfg.get(name, -1) <= 0:
                raise ValueError(f'test_cfg.{name} of {type(head).__name__} is {cfg.get(name)}; an ONNX file needs a '
                                 'number greater than 0')
        self.iou_threshold, self.class_agnostic = read_nms(cfg.get('nms'))
        self.divisor = divisor_of_sizes(model)

    @property
    def numbers_of_a_box(self) -> int:
        """How many numbers the head predicts of a box."""
        return 4

    @staticmethod
    def _require_head(head: nn.Module) -> None:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
        require_methods(head, BaseDenseHead, 'predict', 'predict_by_feat', '_predict_by_feat_single',
                        '_bbox_post_process')
        # mmcv's other coders have arguments of their own.
        host = DistancePointBBoxCoder if isinstance(head.bbox_coder, DistancePointBBoxCoder) else DeltaXYWHBBoxCoder
        require_methods(head.bbox_coder, host, 'decode')
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            raise ValueError(f'{type(head.loss_cls).__name__} cannot be expressed in an ONNX file: it computes scores '
                             'by an activation of its own')

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        head = self.model.bbox_head
        maps = [list(level) for level in zip(*head(self.model.extract_feat(images)))]
        priors = head.prior_generator.grid_priors([level[0].shape[2:] for level in maps], dtype=images.dtype,
                                                  device=images.device)
        candidates = [self._candidates(*level, priors=points, size=size, stride=stride[0])
                      for level, points, stride in zip(maps, priors, head.prior_generator.strides)]
        boxes, scores, labels = (torch.cat(levels, 1) for levels in zip(*candidates))
        least = head.test_cfg.get('min_bbox_size', -1)
        if least >= 0:
            wide_and_high = (boxes[..., 2:] - boxes[..., :2] > least).all(2)
            scores = scores.masked_fill(~wide_and_high, UNUSED)
        scores, rows = suppress(boxes, scores, None if self.class_agnostic else labels, self.iou_threshold,
                                head.test_cfg.max_per_img)
        return answers(gather_rows(boxes, rows), scores, gather_rows(labels, rows))

    def _candidates(self, cls_score: Tensor, bbox_pred: Tensor, score_factor: Tensor | None = None, *, priors: Tensor,
                    size: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``nms_pre`` best boxes of a level, (B, N, 4), with their scores and labels (B, N)."""
        head = self.model.bbox_head
        logits = _by_prior(cls_score, head.cls_out_channels)
        scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(2)[..., :-1]
        scores, rows = self._best(scores.flatten(1))
        prior, labels = rows // head.num_classes, rows % head.num_classes
        deltas = gather_rows(_by_prior(bbox_pred, self.numbers_of_a_box), prior)
        boxes = self._decode(priors[prior], deltas, size, stride)
        if score_factor is not None:
            weighted = scores * gather_rows(_by_prior(score_factor, 1)[..., 0], prior).sigmoid()
            scores = torch.where(scores > UNUSED, weighted, scores)
        return boxes, scores, labels

    def _best(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The best scores (B, N) above the threshold and their rows, at least one column."""
        above = scores > self.score_threshold
        # No image of the batch has more.
        number = torch.minimum(above.sum(1).max(), at_most(scores.shape[1], self.model.bbox_head.test_cfg.nms_pre))
        return scores.masked_fill(~above, UNUSED).topk(number.clamp(min=1))

    def _decode(self, priors: Tensor, deltas: Tensor, size: Tensor, stride: int) -> Tensor:
        return decode(self.model.bbox_head.bbox_coder, priors, deltas, size)


class GeneralizedFocal(SingleStage):
    """GFL and its descendants, which predict a distribution of each distance between a prior and a side of its box."""

    @property
    def numbers_of_a_box(self) -> int:
        return 4 * (self.model.bbox_head.reg_max + 1)

    @staticmethod
    def _require_head(head: nn.Module) -> None:
        from mmdet.models.dense_heads import GFLHead
        from mmdet.models.task_modules.coders import DistancePointBBoxCoder
        require_methods(head, GFLHead, 'predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process',
                        'anchor_center')
        require_methods(head.bbox_coder, DistancePointBBoxCoder, 'decode')

    def _decode(self, priors: Tensor, deltas: Tensor, size: Tensor, stride: int) -> Tensor:
        head = self.model.bbox_head
        distances = head.integral(deltas).reshape(priors.shape) * stride
        return decode(head.bbox_coder, head.anchor_center(priors), distances, size)


class YOLOX(Detector):
    """YOLOX, which gives each prior one class and limits neither the boxes of an image nor their sides.

    Args:
        model: The detector, in evaluation mode.

    Raises:
        ValueError: If a class or an option is not expressed. The message names it.
    """

    def __init__(self, model: nn.Module) -> None:
        from mmdet.models.dense_heads import YOLOXHead
        from mmdet.models.detectors import SingleStageDetector
        super().__init__(model, model.bbox_head.test_cfg.score_thr)
        require_methods(model, SingleStageDetector, 'predict', 'extract_feat')
        require_methods(model.bbox_head, YOLOXHead, 'predict', 'predict_by_feat', '_bbox_decode', '_bbox_post_process')
        self.iou_threshold, self.class_agnostic = read_nms(model.bbox_head.test_cfg.get('nms'))
        self.divisor = divisor_of_sizes(model)

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        head = self.model.bbox_head
        maps = list(zip(*head(self.model.extract_feat(images))))
        priors = head.prior_generator.grid_priors([level[0].shape[2:] for level in maps], dtype=images.dtype,
                                                  device=images.device)
        candidates = [self._candidates(*level, points, stride[0])
                      for level, points, stride in zip(maps, priors, head.prior_generator.strides)]
        boxes, scores, labels = (torch.cat(levels, 1) for levels in zip(*candidates))
        above = scores >= self.score_threshold
        scores, rows = scores.masked_fill(~above, UNUSED).topk(above.sum(1).max().clamp(min=1))
        boxes, labels = gather_rows(boxes, rows), gather_rows(labels, rows)
        scores, rows = suppress(boxes, scores, None if self.class_agnostic else labels, self.iou_threshold, None)
        return answers(gather_rows(boxes, rows), scores, gather_rows(labels, rows))

    def _candidates(self, cls_score: Tensor, bbox_pred: Tensor, objectness: Tensor, priors: Tensor,
                    stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """All boxes of a level, (B, N, 4), with their scores and labels (B, N)."""
        scores, labels = _by_prior(cls_score, self.model.bbox_head.cls_out_channels).sigmoid().max(2)
        deltas = _by_prior(bbox_pred, 4)
        centers, sides = deltas[..., :2] * stride + priors, deltas[..., 2:].exp() * stride
        return (torch.cat([centers - sides / 2, centers + sides / 2], 2),
                scores * _by_prior(objectness, 1)[..., 0].sigmoid(), labels)


def divisor_of_sizes(model: nn.Module) -> int:
    """Of which number the sides of images must be multiples, so that the neck can join its feature maps."""
    stride = max(max(stride) for stride in model.bbox_head.prior_generator.strides)
    if getattr(model.data_preprocessor, 'pad_size_divisor', 1) % stride:
        try:
            with torch.no_grad():
                # An odd number of pixels in the finer maps.
                model.extract_feat(torch.zeros(1, 3, stride * 11 // 4, stride * 15 // 4))
        except RuntimeError:
            return stride
    return 1


def _by_prior(level: Tensor, channels: int) -> Tensor:
    """The predictions (B, priors, channels) of a feature map (B, C, H, W) in the order of mmdet's priors."""
    # torch's exporter writes sizes that follow an unflatten as those of the traced image.
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)
