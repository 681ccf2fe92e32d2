# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Detectors of mmdet with a deformable transformer, such as DINO, as functions of images, for export as ONNX."""
from typing import Any

import torch
from torch import Tensor, nn

from partialnet_mm.deploy.detector import Detector, require_methods
from partialnet_mm.deploy.operators import answers, gather_rows, top_rows


class DeformableTransformer(Detector):
    """DINO, or Deformable DETR with proposals of its encoder.

    The file gives the ``max_per_img`` best pairs of a query and a class, as the host does: there is no threshold and no
    suppression. The feature maps of an image need as many pixels together as there are queries.

    Args:
        model: The detector, in evaluation mode.

    Raises:
        ValueError: If a class or an option is not expressed. The message names it.
    """

    def __init__(self, model: nn.Module) -> None:
        from mmdet.models.dense_heads import DeformableDETRHead, DINOHead
        from mmdet.models.detectors import DINO, DeformableDETR
        super().__init__(model, 0)
        require_methods(model, DINO if isinstance(model, DINO) else DeformableDETR, 'predict', 'extract_feat',
                        'forward_transformer', 'pre_transformer')
        require_methods(model.bbox_head, DINOHead if isinstance(model.bbox_head, DINOHead) else DeformableDETRHead,
                        'predict', 'predict_by_feat', '_predict_by_feat_single', 'forward')
        if not model.as_two_stage:
            raise ValueError(f'{type(model).__name__} with as_two_stage=False cannot be expressed in an ONNX file: its '
                             'head writes into slices of tensors, which torch.onnx does not follow')
        self.padded = getattr(model.data_preprocessor, 'pad_size_divisor', 1) > 1
        self.min_size = self._least_side(model)

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        model, head = self.model, self.model.bbox_head
        tokens = self._tokens(images, model.extract_feat(images), size)
        encoded = model.forward_encoder(**tokens)
        queries, _ = model.pre_decoder(**encoded)
        shared = {name: tokens[name] for name in ('spatial_shapes', 'level_start_index', 'valid_ratios')}
        decoded = model.forward_decoder(memory_mask=tokens['feat_mask'], **shared, **queries)
        logits, boxes = (layers[-1] for layers in head(**decoded))
        most = head.test_cfg.get('max_per_img', model.num_queries)
        if head.loss_cls.use_sigmoid:
            scores, pairs = top_rows(logits.sigmoid().flatten(1), most)
            rows, labels = pairs // head.num_classes, pairs % head.num_classes
        else:
            scores, labels = logits.softmax(2)[..., :-1].max(2)
            scores, rows = top_rows(scores, most)
            labels = gather_rows(labels, rows)
        centers, sides = gather_rows(boxes, rows).split(2, 2)
        corners = torch.cat([centers - sides / 2, centers + sides / 2], 2)
        limits = size.flip(0).repeat(2)
        return answers(torch.minimum((corners * limits).clamp(min=0), limits), scores, labels)

    @staticmethod
    def _least_side(model: nn.Module) -> int:
        """The side of a square image whose feature maps have a pixel for each query."""
        side = 256
        with torch.no_grad():
            strides = [side / level.shape[2] for level in model.extract_feat(torch.zeros(1, 3, side, side))]
        side = 1
        while sum((side // stride)**2 for stride in strides) < model.num_queries:
            side += 1
        return side

    def _tokens(self, images: Tensor, maps: tuple[Tensor, ...], size: Tensor) -> dict[str, Any]:
        """The encoder's input, as ``pre_transformer`` makes it from sizes in Python numbers."""
        model = self.model
        masks = [self._padding(level, images, size) if self.padded else None for level in maps]
        positions = [model.positional_encoding(mask, input=level) for mask, level in zip(masks, maps)]
        shapes = torch.stack([torch.stack([torch.as_tensor(length) for length in level.shape[2:]]) for level in maps])
        return dict(
            feat=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1),
            feat_mask=torch.cat([mask.flatten(1) for mask in masks], 1) if self.padded else None,
            feat_pos=torch.cat([position.flatten(2).transpose(1, 2) + embedding
                                for position, embedding in zip(positions, model.level_embed)], 1),
            spatial_shapes=shapes,
            level_start_index=torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]]),
            valid_ratios=(torch.stack([model.get_valid_ratio(mask) for mask in masks], 1) if self.padded else
                          images.new_ones(images.shape[0], len(maps), 2)))

    @staticmethod
    def _padding(level: Tensor, images: Tensor, size: Tensor) -> Tensor:
        """Which pixels (B, height, width) of a feature map are padding: those whose nearest one of the image is."""
        rows, columns = (
            torch.floor(torch.arange(length, device=level.device) * (torch.as_tensor(whole).float() / length)) >= valid
            for length, whole, valid in zip(level.shape[2:], images.shape[2:], size))
        return (rows[:, None] | columns).expand(level.shape[0], -1, -1)
