# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Which feature maps a backbone returns, measured by running it."""
from typing import NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope

#: Image sizes to try, in this order: the later ones are for backbones that accept one size only.
SIZES = (128, 224, 256)
#: Arguments of backbones that name weights.
WEIGHTS = ('init_cfg', 'pretrained')


class FeatureMap(NamedTuple):
    """One output of a backbone. A vector, which has no position in the image, has stride 0."""

    channels: int
    stride: int


class MeasuredBackbone(NamedTuple):
    """The outputs of a backbone and the names of its parameters."""

    maps: list[FeatureMap]
    parameters: list[str]


def measure_backbone(cfg: dict, scope: str = 'mmengine', in_channels: int = 3) -> MeasuredBackbone:
    """Builds a backbone with random weights on the CPU and runs it once.

    The state of the random number generator is restored.

    Args:
        cfg: The backbone of any OpenMMLab library. Weights that it names are
            not loaded.
        scope: Library that the types belong to, e.g. 'mmdet'. Defaults to
            'mmengine'.
        in_channels: Channels of the image. Defaults to 3.

    Returns:
        Its outputs in order, feature maps or vectors, and the names of its
        parameters.

    Raises:
        ValueError: If it cannot be built or run, or returns something else.
    """
    with DefaultScope.overwrite_default_scope(scope), torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            backbone = MODELS.build({key: value for key, value in cfg.items() if key not in WEIGHTS})
            backbone.eval()  # returns None in mmdet's ResNet
        except Exception as error:  # any, from any library
            raise ValueError(f'the backbone {cfg.get("type")} cannot be built: {error}') from error
        errors = []
        for size in SIZES:
            try:
                outputs = backbone(torch.zeros(1, in_channels, size, size))
            except Exception as error:
                errors.append(f'{size} x {size}: {error}')
                continue
            outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
            if any(not isinstance(output, torch.Tensor) or output.dim() not in (2, 4) for output in outputs):
                raise ValueError(f'the backbone {cfg.get("type")} returns something other than feature maps '
                                 '(B, C, H, W) and vectors (B, C)')
            maps = [FeatureMap(output.shape[1], round(size / output.shape[-1]) if output.dim() == 4 else 0)
                    for output in outputs]
            return MeasuredBackbone(maps, [name for name, _ in backbone.named_parameters()])
    raise ValueError(f'the backbone {cfg.get("type")} cannot be run. ' + '; '.join(errors))
