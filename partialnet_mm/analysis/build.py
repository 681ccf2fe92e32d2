# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The model of a config without a runner, a data set or a checkpoint."""
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn


def build_model(cfg: Config) -> nn.Module:
    """Builds the model of a classifier's, detector's or segmentor's config.

    Its weights are random: ``init_cfg`` is not followed. mmengine's default
    scope is afterwards that of the config.

    Args:
        cfg: With ``model`` and ``default_scope``; stays as it is.

    Returns:
        nn.Module: The model, in training mode.

    Raises:
        ValueError: If the config has no ``model`` or no ``default_scope``.
    """
    for key in ('model', 'default_scope'):
        if not cfg.get(key):
            raise ValueError(f'the config has no {key}: it needs a model and the default_scope of its library '
                             "('mmpretrain', 'mmdet' or 'mmseg')")
    init_default_scope(cfg.default_scope)
    model_cfg = cfg.model.copy()
    # mmpretrain's and mmseg's configs have it beside the model, where mmengine's runner takes it from.
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    return MODELS.build(model_cfg)
