# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PATConv in networks that take no ``conv_cfg``, such as ConvNeXt."""
from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import nn

from .layer import PATConv2d, is_replaceable


def replace_convs(network: nn.Module, **options: object) -> list[str]:
    """Replaces a network's spatial convolutions of equal width by PATConv.

    Args:
        network: Changed in place. Only plain ``nn.Conv2d`` are replaced; subclasses may compute something else.
        **options: ``split_ratio``, ``gate``, ``conv``, ``norm_cfg``, ``norm_eval`` and ``deploy`` of
            :class:`PATConv2d`.

    Returns:
        Names of the replaced layers.

    Raises:
        ValueError: If there is none, or one cannot be replaced.
        TypeError: If an option is unknown.
    """
    replaced = []
    for parent_name, parent in list(network.named_modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is nn.Conv2d and is_replaceable(conv.in_channels, conv.out_channels, conv.kernel_size):
                layer = PATConv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
                                  conv.dilation, conv.groups, conv.bias is not None, conv.padding_mode, **options)
                setattr(parent, name, layer.to(conv.weight).train(conv.training))
                replaced.append(f'{parent_name}.{name}'.lstrip('.'))
    if not replaced:
        raise ValueError(f'{type(network).__name__} has no convolution that PATConv could replace: one that keeps the '
                         'width and is larger than 1x1')
    return replaced


@MODELS.register_module(name='PATConvNeXt')
def build_patconvnext(patconv_cfg: dict | Sequence[dict] = dict(), **convnext: object) -> nn.Module:
    """mmpretrain's ConvNeXt with PATConv instead of its depthwise 7x7 convolutions (Table 5).

    mmpretrain is imported when a network is built, so that the other libraries need not have it.

    Args:
        patconv_cfg: Options of :func:`replace_convs`, for all stages, or one dict per stage. The official code has
            ``gate='self'`` in the last stage. Defaults to ``dict()``.
        **convnext: Arguments of mmpretrain's ConvNeXt, which checks them.

    Raises:
        ImportError: If mmpretrain is not installed.
        ValueError: If ``patconv_cfg`` is a sequence of another length.
    """
    try:
        from mmpretrain.models.backbones import ConvNeXt
    except ImportError as error:
        raise ImportError(f"type='PATConvNeXt' is mmpretrain's ConvNeXt, and mmpretrain cannot be imported: {error}"
                          ) from error
    network = ConvNeXt(**convnext)
    stages = network.stages
    options = [patconv_cfg] * len(stages) if isinstance(patconv_cfg, dict) else list(patconv_cfg)
    if len(options) != len(stages):
        raise ValueError(f'patconv_cfg must be one dict or one for each of the {len(stages)} stages, '
                         f'got {patconv_cfg!r}')
    for stage, option in zip(stages, options):
        replace_convs(stage, **option)
    network.train()  # frozen_stages holds for the new layers, too
    return network
