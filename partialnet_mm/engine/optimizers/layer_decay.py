# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Layer-wise learning rates for any model of any OpenMMLab library."""
from numbers import Real

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class PartialNetLayerDecayConstructor(DefaultOptimWrapperConstructor):
    """Gives earlier layers of a pretrained backbone smaller learning rates.

    The learning rate of a parameter in layer i of n is multiplied by ``decay_rate ** (n - 1 - i)``. The backbone's
    ``get_layer_depth`` defines the layers, as in :class:`PartialNet` and mmpretrain's backbones: for PartialNet, layer
    0 is the stem and each block is a layer. Parameters outside the backbone, and the norms of its outputs, keep the
    full rate. The rates are those of mmpretrain's ``LearningRateDecayOptimWrapperConstructor``, which works for
    classifiers only; this one also works for detectors and segmentors.

    The other keys of ``paramwise_cfg`` have the same meaning as in mmengine's ``DefaultOptimWrapperConstructor``, and
    learning rates that they set are decayed as well.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper. Its ``optimizer`` must have an ``lr``.
        paramwise_cfg: ``decay_rate`` in (0, 1], required, and any of ``allowed_keys``. Defaults to None, which is an
            error.

    Raises:
        ValueError: If ``decay_rate`` is missing or out of range, a key is unknown, or the optimizer has no ``lr``; when
            it is called, if the model has no backbone with ``get_layer_depth``.

    Example:
        >>> optim_wrapper = dict(
        >>>     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        >>>     constructor='PartialNetLayerDecayConstructor',
        >>>     paramwise_cfg=dict(decay_rate=0.9, norm_decay_mult=0.))
    """

    allowed_keys = ('decay_rate', 'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
                    'dwconv_decay_mult', 'flat_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate')

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        for key, value in self.paramwise_cfg.items():
            if key not in self.allowed_keys:
                raise ValueError(f'paramwise_cfg of {type(self).__name__} has no key {key!r} (given {key}={value!r}). '
                                 f'Allowed are {", ".join(self.allowed_keys)}; the number of layers is the '
                                 "backbone's own")
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, Real) or not 0 < rate <= 1:
            raise ValueError(f"{type(self).__name__} needs paramwise_cfg['decay_rate'] in (0, 1], got {rate!r}")
        if self.base_lr is None:
            raise ValueError(f'{type(self).__name__} needs an lr in optim_wrapper.optimizer, got {self.optimizer_cfg}')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   is_dcn_module: int | float | None = None) -> None:
        """Adds a group for each parameter, as mmengine's constructor does, and decays the learning rates."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix == '':  # mmengine's method calls this one for every module; the whole model is the last to return
            self._decay(params, module)

    def _decay(self, params: list[dict], model: nn.Module) -> None:
        backbones = _backbones_of(model)
        if not backbones:
            raise ValueError(f'{type(self).__name__}: no module of {type(model).__name__} has a method get_layer_depth'
                             ', as PartialNet and some backbones of mmpretrain have')
        names = {parameter: name for name, parameter in model.named_parameters()}
        layers: dict[str, list[float]] = {}
        for group in params:
            name = names[group['params'][0]]
            power, layer = 0, 'the rest of the model'
            for backbone_prefix, backbone in backbones.items():
                if name.startswith(backbone_prefix):
                    depth, num_layers = backbone.get_layer_depth(name, backbone_prefix)
                    power, layer = num_layers - 1 - depth, f'{backbone_prefix}layer {depth} of {num_layers}'
            group['lr'] = group.get('lr', self.base_lr) * self.paramwise_cfg['decay_rate']**power
            layers.setdefault(layer, []).append(group['lr'])
        lines = [f'  {layer}: {_range(rates)} for {len(rates)} parameters' for layer, rates in layers.items()]
        MMLogger.get_current_instance().info('learning rates by layer:\n' + '\n'.join(lines))


def _backbones_of(model: nn.Module) -> dict[str, nn.Module]:
    """The innermost modules with ``get_layer_depth``, by the prefix of their parameters' names."""
    found = {f'{name}.' if name else '': module for name, module in model.named_modules()
             if hasattr(module, 'get_layer_depth')}
    return {prefix: module for prefix, module in found.items()
            if not any(other != prefix and other.startswith(prefix) for other in found)}


def _range(rates: list[float]) -> str:
    low, high = min(rates), max(rates)
    return f'{low:.3g}' if low == high else f'{low:.3g} to {high:.3g}'
