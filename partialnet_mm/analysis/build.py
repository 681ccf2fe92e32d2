# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The model of a config without a runner, a data set or a checkpoint."""
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

#: How many boxes :func:`forward_detector` gives to the second stage of a detector.
PROPOSALS = 1000


def build_model(cfg: Config) -> nn.Module:
    """The model of an OpenMMLab config in training mode, with random weights; sets mmengine's default scope."""
    for key in ('model', 'default_scope'):
        if not cfg.get(key):
            raise ValueError(f'the config has no {key}: it needs a model and the default_scope of its library '
                             "('mmpretrain', 'mmdet' or 'mmseg')")
    init_default_scope(cfg.default_scope)
    model_cfg = cfg.model.copy()
    # In configs of mmpretrain and mmseg it is beside the model, where mmengine's runner reads it.
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model_cfg)


def forward_detector(model: nn.Module, images: Tensor) -> object:
    """Runs a detector of mmdet without its post-processing on normalized images (B, C, H, W).

    The second stage gets ``PROPOSALS`` random boxes per image, the same in each call.
    """
    from mmdet.structures import DetDataSample
    height, width = images.shape[2:]
    size = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
                batch_input_shape=(height, width), scale_factor=(1., 1.))
    samples = [DetDataSample(metainfo=size) for _ in images]
    if not getattr(model, 'with_rpn', False):
        return model(images, samples, mode='tensor')
    features = model.extract_feat(images)
    corners = torch.rand(PROPOSALS, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    boxes = (corners * torch.tensor([width, height])).flatten(1).to(images)
    proposals = [InstanceData(bboxes=boxes) for _ in images]
    return model.rpn_head(features), model.roi_head(features, proposals, samples)
