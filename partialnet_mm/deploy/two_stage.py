# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Faster, Mask and Cascade R-CNN of mmdet as functions that are exported as ONNX."""
import torch
from torch import Tensor, nn

from partialnet_mm.deploy.detector import Detector, require_methods
from partialnet_mm.deploy.operators import UNUSED, answers, decode, gather_rows, read_nms, roi_align, suppress, top_rows


class Proposals(nn.Module):
    """A region proposal network: the boxes (B, K, 4) that it proposes, and their scores (B, K)."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        from mmdet.models import RPNHead
        require_methods(head, RPNHead, 'forward', 'forward_single', 'predict', 'predict_by_feat',
                        '_predict_by_feat_single', '_bbox_post_process')
        self.head = head
        self.nms_pre = head.test_cfg.get('nms_pre', -1)
        self.most = head.test_cfg.max_per_img
        self.min_size = head.test_cfg.get('min_bbox_size', -1)
        self.iou_threshold, agnostic = read_nms(head.test_cfg.nms)
        self.levels_apart = not agnostic

    def forward(self, features: tuple[Tensor, ...], size: Tensor) -> tuple[Tensor, Tensor]:
        maps = list(zip(*self.head(features)))
        all_priors = self.head.prior_generator.grid_priors([scores.shape[2:] for scores, _ in maps],
                                                           device=features[0].device)
        boxes, scores, levels = [], [], []
        for level, ((score, deltas), priors) in enumerate(zip(maps, all_priors)):
            score = score.permute(0, 2, 3, 1).reshape(score.shape[0], -1, self.head.cls_out_channels)
            deltas = deltas.permute(0, 2, 3, 1).reshape(deltas.shape[0], -1, 4)
            score = score.sigmoid() if self.head.use_sigmoid_cls else score.softmax(-1)[..., :-1]
            score, rows = top_rows(score.squeeze(-1), self.nms_pre if self.nms_pre > 0 else None)
            boxes.append(decode(self.head.bbox_coder, priors[rows], gather_rows(deltas, rows), size))
            scores.append(score)
            levels.append(torch.full_like(rows, level))
        boxes, scores = torch.cat(boxes, 1), torch.cat(scores, 1)
        if self.min_size >= 0:
            large = ((boxes[..., 2:] - boxes[..., :2]) > self.min_size).all(-1)
            scores = torch.where(large, scores, torch.full_like(scores, UNUSED))
        # One column at least: the second stage then never runs on an empty batch.
        scores, rows = suppress(boxes, scores, torch.cat(levels, 1) if self.levels_apart else None,
                                self.iou_threshold, self.most, least=1)
        return gather_rows(boxes, rows), scores


class RoIFeatures(nn.Module):
    """A SingleRoIExtractor: features (B * K, C, h, w) of boxes (B, K, 4), each from the level of its size."""

    def __init__(self, extractor: nn.Module, shared_head: nn.Module | None) -> None:
        super().__init__()
        from mmcv.ops import RoIAlign
        from mmdet.models import SingleRoIExtractor
        require_methods(extractor, SingleRoIExtractor, 'forward', 'map_roi_levels')
        for layer in extractor.roi_layers:
            require_methods(layer, RoIAlign, 'forward')
            if layer.pool_mode != 'avg':
                raise ValueError(f"RoIAlign with pool_mode={layer.pool_mode!r} cannot be expressed in an ONNX file; "
                                 "what can be is 'avg'")
        self.extractor = extractor
        self.shared_head = shared_head

    def forward(self, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        layers = self.extractor.roi_layers
        images = torch.arange(boxes.shape[0])[:, None].expand(boxes.shape[:2]).flatten()
        boxes = boxes.flatten(0, 1)
        if len(layers) == 1:
            pooled = roi_align(features[0], boxes, images, layers[0])
        else:
            # Compared with powers of two, sides such as 448 do not depend on how a runtime rounds its logarithm.
            sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
            limits = 2.**torch.arange(1, len(layers))
            levels = (sides[:, None] / self.extractor.finest_scale + 1e-6 >= limits).sum(1)
            rows = [(levels == level).nonzero().squeeze(1) for level in range(len(layers))]
            pooled = torch.cat([roi_align(map_, boxes[row], images[row], layer)
                                for map_, row, layer in zip(features, rows, layers)])
            order = torch.cat(rows)
            pooled = pooled[torch.zeros_like(order).scatter(0, order, torch.arange(order.shape[0]))]
        return pooled if self.shared_head is None else self.shared_head(pooled)


class BoxStage(nn.Module):
    """A second stage: scores (B, K, classes + 1) before their activation, and deltas, of boxes (B, K, 4)."""

    def __init__(self, extractor: nn.Module, shared_head: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        from mmdet.models import BBoxHead
        require_methods(head, BBoxHead, 'predict_by_feat', '_predict_by_feat_single', 'regress_by_class')
        if not (head.with_cls and head.with_reg):
            raise ValueError(f'{type(head).__name__} with with_cls={head.with_cls} and with_reg={head.with_reg} cannot '
                             'be expressed in an ONNX file; both are needed')
        self.features = RoIFeatures(extractor, shared_head)
        self.head = head

    def forward(self, features: tuple[Tensor, ...], boxes: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(self.features(features, boxes))
        return tuple(values.reshape(*boxes.shape[:2], -1) for values in found)

    def activate(self, scores: Tensor) -> Tensor:
        """Scores (B, K, classes + 1) after their activation."""
        if not self.head.custom_cls_channels:
            return scores.softmax(-1)
        return self.head.loss_cls.get_activation(scores.flatten(0, 1)).reshape(*scores.shape[:2], -1)

    def refine(self, boxes: Tensor, scores: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
        """The boxes (B, K, 4), regressed for the class of the highest score."""
        if not self.head.reg_class_agnostic:
            if self.head.custom_activation:
                scores = self.activate(scores)
            labels = scores[..., :-1].argmax(-1)
            deltas = gather_rows(deltas.reshape(-1, self.head.num_classes, 4), labels.reshape(-1, 1))
            deltas = deltas.reshape(boxes.shape)
        return decode(self.head.bbox_coder, boxes, deltas, size)


class MaskStage(nn.Module):
    """A mask branch: mask probabilities (B, K, h, w) of boxes (B, K, 4) with labels (B, K)."""

    def __init__(self, extractor: nn.Module, shared_head: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        from mmdet.models import FCNMaskHead
        require_methods(head, FCNMaskHead, 'forward', 'predict_by_feat', '_predict_by_feat_single')
        self.features = RoIFeatures(extractor, shared_head)
        self.head = head

    def forward(self, features: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        masks = self.head(self.features(features, boxes)).sigmoid()
        of_class = torch.zeros_like(labels) if self.head.class_agnostic else labels
        rows = torch.arange(masks.shape[0]) * masks.shape[1] + of_class.flatten()
        return masks.flatten(0, 1)[rows].reshape(*boxes.shape[:2], *masks.shape[2:])


class TwoStage(Detector):
    """A detector with region proposals and one or more box stages: Faster, Mask and Cascade R-CNN."""

    def __init__(self, model: nn.Module) -> None:
        from mmdet.models import CascadeRoIHead, StandardRoIHead, TwoStageDetector
        roi_head = model.roi_head
        super().__init__(model, roi_head.test_cfg.score_thr)
        require_methods(model, TwoStageDetector, 'predict', 'extract_feat')
        if not model.with_rpn:
            raise ValueError(f'{type(model).__name__} without an rpn_head cannot be expressed in an ONNX file: its '
                             'proposals are not found in the image')
        cascade = isinstance(roi_head, CascadeRoIHead)
        require_methods(roi_head, CascadeRoIHead if cascade else StandardRoIHead, 'predict', 'predict_bbox',
                        'predict_mask', '_bbox_forward', '_mask_forward')
        if cascade:
            require_methods(roi_head, CascadeRoIHead, '_refine_roi')
        shared = roi_head.shared_head if roi_head.with_shared_head else None
        self.proposals = Proposals(model.rpn_head)
        self.boxes = nn.ModuleList(BoxStage(extractor, shared, head) for extractor, head in zip(
            _stages(roi_head.bbox_roi_extractor), _stages(roi_head.bbox_head)))
        self.masks = nn.ModuleList()
        if roi_head.with_mask:
            self.outputs = ('boxes', 'scores', 'labels', 'masks')
            self.masks.extend(MaskStage(extractor, shared, head) for extractor, head in zip(
                _stages(roi_head.mask_roi_extractor), _stages(roi_head.mask_head)))
        self.most = roi_head.test_cfg.max_per_img
        self.iou_threshold, agnostic = read_nms(roi_head.test_cfg.nms)
        self.classes_apart = not agnostic

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        features = self.model.extract_feat(images)
        proposals, proposal_scores = self.proposals(features, size)
        logits = []
        for stage in self.boxes:
            scores, deltas = stage(features, proposals)
            logits.append(scores)
            if stage is not self.boxes[-1]:
                proposals = stage.refine(proposals, scores, deltas, size)
        scores = stage.activate(sum(logits) / len(logits))[..., :-1]
        taking_part = (scores > self.score_threshold) & (proposal_scores[..., None] > UNUSED)
        scores = torch.where(taking_part, scores, torch.full_like(scores, UNUSED))
        boxes = decode(stage.head.bbox_coder, proposals, deltas, size)
        if stage.head.reg_class_agnostic:
            boxes = boxes[:, :, None].expand(*scores.shape, 4).flatten(1, 2)
        labels = torch.arange(stage.head.num_classes).expand(scores.shape).flatten(1)
        scores, rows = suppress(boxes, scores.flatten(1), labels if self.classes_apart else None, self.iou_threshold,
                                self.most if self.most > 0 else None, least=bool(self.masks))
        boxes, labels = gather_rows(boxes, rows), gather_rows(labels, rows)
        found = answers(boxes, scores, labels)
        if not self.masks:
            return found
        masks = sum(stage(features, boxes, labels) for stage in self.masks) / len(self.masks)
        masks = torch.where((scores > UNUSED)[..., None, None], masks, torch.zeros_like(masks))
        # The column that kept the mask branch from an empty batch goes if no image uses it.
        columns = (scores > UNUSED).sum(1).max()
        return tuple(values[:, :columns] for values in (*found, masks))


def _stages(modules: nn.Module) -> list[nn.Module]:
    """The modules of a cascade, or the one of a head without stages."""
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
