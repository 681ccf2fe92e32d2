# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The model of a config without a runner, a data set or a checkpoint."""
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

#: Number of boxes that :class:`Detector` gives to the second stage.
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


class Detector(nn.Module):
    """A detector of mmdet as a function of normalized images (B, C, H, W), without its post-processing.

    The second stage gets ``PROPOSALS`` random boxes per image, the same in each call.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> object:
        from mmdet.structures import DetDataSample
        size = tuple(images.shape[2:])
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
        samples = [DetDataSample(metainfo=dict(shapes, scale_factor=(1., 1.))) for _ in images]
        if not getattr(self.model, 'with_rpn', False):
            return self.model(images, samples, mode='tensor')
        features = self.model.extract_feat(images)
        corners = torch.rand(PROPOSALS, 2, 2, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
        boxes = (corners * torch.tensor(size[::-1])).flatten(1).to(images)
        proposals = [InstanceData(bboxes=boxes) for _ in images]
        return self.model.rpn_head(features), self.model.roi_head(features, proposals, samples)
