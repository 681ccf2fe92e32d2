# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Norms that also train on one value a channel."""
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Applies a norm; a batch norm that gets one value a channel uses its running statistics.

    One value has no statistics, and torch raises. Gates get one value an
    image, and stage 4 one of an image of less than 64 pixels, so that
    otherwise the network would not train at batch size 1.

    Args:
        norm (nn.Module): Any norm.
        x (Tensor): (B, C, H, W).

    Returns:
        Tensor: (B, C, H, W).
    """
    if norm.training and x.numel() == x.shape[1] and isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        gathers = isinstance(norm, nn.SyncBatchNorm) and get_world_size() > 1
        if not gathers:
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False,
                                eps=norm.eps)
    return norm(x)
