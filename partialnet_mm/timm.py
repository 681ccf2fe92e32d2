# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PartialNet's classifiers in timm's model registry: ``timm.create_model('partialnet_s')`` after importing this.

The tensors have the names and shapes of the classifiers of ``configs/pretrain``, so each library loads the weights of
the other as they are.
"""
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmcv.cnn import build_activation_layer
from mmengine.model import initialize
from torch import Tensor, device, dtype, nn

from .checkpoint.layouts import with_own_names
from .checkpoint.pretrained import shorten
from .models import PartialNet, PartialNetBlock

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.layers import SelectAdaptivePool2d, trunc_normal_
    from timm.models import (
        build_model_with_cfg,
        generate_default_cfgs,
        register_model,
        register_notrace_module,
    )
except ImportError as error:
    raise ImportError(f'partialnet_mm.timm needs timm 1.0 or newer ({error}): pip install "timm>=1.0"') from error

#: Poolings that leave the number of channels as it is; '' for none.
POOLINGS = ('avg', 'max', 'avgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax', '')

# torch.fx cannot follow its checks of the input.
register_notrace_module(PartialNet)


class PartialNetClassifier(nn.Module):
    """The paper's classifier (Fig. 3) with the interface of timm's models.

    Args:
        arch: As of :class:`PartialNet`. Defaults to 't0'.
        num_classes: Classes; 0 for none, so that the output is that of the
            head's hidden layer. Defaults to 1000.
        in_chans: Channels of the image. Defaults to 3.
        global_pool: Pooling before the head, one of :data:`POOLINGS`. With
            '' the head is applied to each pixel. Defaults to 'avg'.
        drop_rate: Dropout before the classifier. Defaults to 0.
        drop_path_rate: Stochastic depth, see :class:`PartialNet`. Defaults
            to 0.
        head_hidden_size: Width of the head's hidden layer. Defaults to 1280.
        device: Where the tensors are made; None for torch's default.
            Defaults to None.
        dtype: Type of the parameters; None for torch's default. Defaults to
            None.
        **backbone: Further arguments of :class:`PartialNet`, as ``gate`` or
            ``layer_scale_init_value``.

    Raises:
        ValueError: If an argument is outside its range.
        TypeError: If an argument is unknown.
    """

    def __init__(self,
                 arch: str | dict = 't0',
                 num_classes: int = 1000,
                 in_chans: int = 3,
                 global_pool: str = 'avg',
                 drop_rate: float = 0.,
                 drop_path_rate: float = 0.,
                 head_hidden_size: int = 1280,
                 device: device | str | None = None,
                 dtype: dtype | None = None,
                 **backbone: Any) -> None:
        super().__init__()
        self.backbone = PartialNet(arch, in_chans, drop_path_rate=drop_path_rate, **backbone)
        if self.backbone.pretrained is not None:
            raise ValueError("init_cfg of type 'Pretrained': timm's models load a checkpoint by checkpoint_path=FILE")
        # BaseModule.init_weights would log each tensor.
        initialize(self.backbone, self.backbone.init_cfg)
        settings = arch if isinstance(arch, dict) else PartialNet.arch_settings[arch]
        channels = self.backbone.channels
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features, self.head_hidden_size = channels[-1], head_hidden_size
        self.feature_info = [dict(num_chs=width, reduction=4 << i, module=f'backbone.stages.{i}')
                             for i, width in enumerate(channels)]
        self.global_pool = _pooling(global_pool)
        # The names are those of mmpretrain's StackedLinearClsHead.
        hidden = nn.ModuleDict(dict(fc=_linear(self.num_features, head_hidden_size),
                                    act=build_activation_layer(backbone.get('act_cfg') or settings['act_cfg'])))
        classifier = nn.ModuleDict(dict(fc=_linear(head_hidden_size, num_classes)))
        self.head = nn.ModuleDict(dict(layers=nn.ModuleList([hidden, classifier])))
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to the last feature map, (B, num_features, H // 32, W // 32)."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps the last feature map to logits, or to what is before the classifier, (B, head_hidden_size)."""
        hidden, classifier = self.head['layers']
        x = self.global_pool(x).permute(0, 2, 3, 1)
        x = F.dropout(hidden['act'](hidden['fc'](x)), self.drop_rate, self.training)
        if not pre_logits:
            x = classifier['fc'](x)
        return x.permute(0, 3, 1, 2) if self.global_pool.is_identity() else x.flatten(1)

    def forward_intermediates(self,
                              x: Tensor,
                              indices: int | Sequence[int] | None = None,
                              norm: bool = False,
                              stop_early: bool = False,
                              output_fmt: str = 'NCHW',
                              intermediates_only: bool = False) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Computes the feature maps of stages.

        Args:
            x: Images, (B, in_chans, H, W).
            indices: Stages, 0-3 or from the end; a number n for the last n;
                None for all. Defaults to None.
            norm: For timm's interface; there is no norm after the last stage.
                Defaults to False.
            stop_early: Whether to leave out the stages after the last of
                ``indices``. Defaults to False.
            output_fmt: 'NCHW'. Defaults to 'NCHW'.
            intermediates_only: Whether to return the feature maps alone.
                Defaults to False.

        Returns:
            The last feature map that was computed and the list of those of
            ``indices``, or that list.

        Raises:
            ValueError: If ``output_fmt`` is another one, or there is no such
                stage.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        stages = list(zip(self.backbone.downsample_layers, self.backbone.stages))
        wanted = _stages(len(stages), indices)
        found = []
        for i, (downsample, stage) in enumerate(stages[:max(wanted) + 1] if stop_early else stages):
            x = stage(downsample(x))
            if i in wanted:
                found.append(x)
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(self,
                                  indices: int | Sequence[int] = 1,
                                  prune_norm: bool = False,
                                  prune_head: bool = True) -> list[int]:
        """Removes the stages after the last of ``indices``, and with ``prune_head`` the classifier."""
        wanted = _stages(len(self.backbone.stages), indices)
        for name in ('downsample_layers', 'stages'):
            setattr(self.backbone, name, getattr(self.backbone, name)[:max(wanted) + 1])
        if prune_head:
            self.reset_classifier(0, '')
        return wanted

    def get_classifier(self) -> nn.Module:
        """The layer from the head's hidden layer to the classes; an identity where there are none."""
        return self.head['layers'][1]['fc']

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, device: device | str | None = None,
                         dtype: dtype | None = None) -> None:
        """Replaces the classifier by a new one, and the pooling where one is named."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _pooling(global_pool).train(self.training)
        like = self.head['layers'][0]['fc'].weight
        classifier = _linear(self.head_hidden_size, num_classes).train(self.training)
        self.head['layers'][1]['fc'] = classifier.to(device=device or like.device, dtype=dtype or like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed twice in training to save memory (``with_cp`` of :class:`PartialNet`)."""
        for module in self.modules():
            if isinstance(module, PartialNetBlock):
                module.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters for layer-wise learning rates: stages, or blocks, each with its merging layer."""
        if coarse:
            return dict(stem=r'^backbone\.downsample_layers\.0\.',
                        blocks=[(r'^backbone\.(?:downsample_layers|stages)\.(\d+)\.', None),
                                (r'^head\.layers\.0\.', (99999, ))])
        return dict(stem=r'^backbone\.downsample_layers\.0\.',
                    blocks=[(r'^backbone\.downsample_layers\.(\d+)\.', (0, )),
                            (r'^backbone\.stages\.(\d+)\.(\d+)\.', None),
                            (r'^head\.layers\.0\.', (99999, ))])

    def no_weight_decay(self) -> set[str]:
        """Names of parameters beside biases and norms that weight decay leaves alone: none."""
        return set()


def _stages(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Indices of stages as timm's models take them: the last ones, those of a list, or all."""
    if indices is None or isinstance(indices, int):
        indices = range(-(count if indices is None else indices), 0)
    if not indices or not all(-count <= i < count for i in indices):
        raise ValueError(f'indices must be a number from 1 to {count}, or stages from {-count} to {count - 1}, got '
                         f'{list(indices)}')
    return [i % count for i in indices]


def _pooling(kind: str) -> SelectAdaptivePool2d:
    if kind not in POOLINGS:
        raise ValueError(f'global_pool must be one of {", ".join(map(repr, POOLINGS))}, got {kind!r}')
    return SelectAdaptivePool2d(pool_type=kind)


def _linear(channels: int, outputs: int) -> nn.Module:
    if not outputs:
        return nn.Identity()
    layer = nn.Linear(channels, outputs)
    trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _own_names(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights of this project's classifiers or of the official code, by the names of this project.

    Raises:
        ValueError: If a tensor of the backbone is missing, which timm does not report where it replaces the head.
    """
    state = with_own_names(state_dict) or state_dict
    missing = [name for name in model.state_dict() if name.startswith('backbone.') and name not in state]
    if missing:
        raise ValueError(f'the weights are of another network: {len(missing)} tensors of the backbone are missing, '
                         f'{shorten(missing, 3)}; they begin with {shorten(list(state), 3)}')
    return state


def _create(arch: str, pretrained: bool, options: dict[str, Any], **defaults: Any) -> nn.Module:
    name = f'partialnet_{arch}'
    overlay = options.get('pretrained_cfg_overlay') or {}
    if pretrained and not (overlay.get('file') or overlay.get('state_dict') or options.get('pretrained_cfg')):
        raise ValueError(f'pretrained=True: {name} has no published weights; checkpoint_path=FILE loads a file, and '
                         'pretrained=True with pretrained_cfg_overlay=dict(file=FILE) adapts it to other classes')
    if 'out_indices' in options and not options.get('features_only'):
        raise ValueError(f'out_indices={options["out_indices"]!r} needs features_only=True: a classifier reads the '
                         'last stage')
    return build_model_with_cfg(
        PartialNetClassifier, name, pretrained, pretrained_filter_fn=_own_names,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'), **{**defaults, 'arch': arch, **options})


default_cfgs = generate_default_cfgs({
    f'partialnet_{arch}': dict(
        input_size=(3, 224, 224), min_input_size=(3, 32, 32), pool_size=(7, 7), num_classes=1000, crop_pct=0.9,
        interpolation='bicubic', mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD,
        first_conv='backbone.downsample_layers.0.conv', classifier='head.layers.1.fc', license='apache-2.0',
        paper_ids='arXiv:2502.01303', paper_name='Partial Channel Network: Compute Fewer, Perform Better',
        origin_url='https://github.com/haiduo/PartialNet')
    for arch in ('t0', 't1', 't2', 's', 'm', 'l')
})


@register_model
def partialnet_t0(pretrained: bool = False, **options: Any) -> nn.Module:
    """PartialNet-T0; stochastic depth as in the paper's Table 8, as for the others."""
    return _create('t0', pretrained, options)


@register_model
def partialnet_t1(pretrained: bool = False, **options: Any) -> nn.Module:
    """PartialNet-T1."""
    return _create('t1', pretrained, options, drop_path_rate=0.02)


@register_model
def partialnet_t2(pretrained: bool = False, **options: Any) -> nn.Module:
    """PartialNet-T2."""
    return _create('t2', pretrained, options, drop_path_rate=0.05)


@register_model
def partialnet_s(pretrained: bool = False, **options: Any) -> nn.Module:
    """PartialNet-S."""
    return _create('s', pretrained, options, drop_path_rate=0.1)


@register_model
def partialnet_m(pretrained: bool = False, **options: Any) -> nn.Module:
    """PartialNet-M."""
    return _create('m', pretrained, options, drop_path_rate=0.2)


@register_model
def partialnet_l(pretrained: bool = False, **options: Any) -> nn.Module:
    """PartialNet-L."""
    return _create('l', pretrained, options, drop_path_rate=0.3)
