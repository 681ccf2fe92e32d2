# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The two PartialNet blocks."""
from collections.abc import Callable

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from ._folding import fold_affine_before, fold_scale_after
from .conv_mlp import ConvMLP
from .merged_block import has_matrix_form, reads_weights_from_memory, run_as_matrices, runs_as_matrices
from .merged_tokens import store_as_read, store_as_usual
from .patconv import PartialSpatialAttention


class PartialNetBlock(nn.Module):
    """PartialNet block v1 (Fig. 3 (a)), the block of stages 1-3.

    ``x + DropPath(layer_scale * PAT_sp(MLP(PAT_ch(x))))``. With a partial
    convolution as mixer and no spatial attention it is FasterNet's block.

    Args:
        token_mixer: PAT_ch, or any layer from (B, C, H, W) to the
            same. With a method ``output_affine`` it leaves its last norm to
            the MLP when merged.
        channels: Channels of the input and of the output.
        norm_cfg: Norms of MLP and PAT_sp. Defaults to
            ``dict(type='BN')``.
        act_cfg: Activation of the MLP. Defaults to
            ``dict(type='ReLU')``.
        drop_path_rate: Probability of dropping the branch. Defaults
            to 0.
        layer_scale_init_value: Initial factor on each channel of the
            branch; 0 for none. Defaults to 0.
        spatial_attention: What follows the MLP: 'partial' for PAT_sp,
            'full' for its form over all channels (Table 3), 'none' (Table 4).
            Defaults to 'partial'.
        deploy: Whether to build the merged form. Defaults to False.
    """

    spatial_attentions = ('partial', 'full', 'none')

    def __init__(self,
                 token_mixer: nn.Module,
                 channels: int,
                 norm_cfg: dict = dict(type='BN'),
                 act_cfg: dict = dict(type='ReLU'),
                 drop_path_rate: float = 0.,
                 layer_scale_init_value: float = 0.,
                 spatial_attention: str = 'partial',
                 deploy: bool = False) -> None:
        super().__init__()
        if spatial_attention not in self.spatial_attentions:
            raise ValueError(f'spatial_attention must be one of {self.spatial_attentions}, got {spatial_attention!r}')
        self.token_mixer = token_mixer
        attends = spatial_attention != 'none'
        self.mlp = ConvMLP(channels, norm_cfg, act_cfg, channels + 1 if deploy and attends else None, deploy)
        self.spatial_attention = None
        if attends:
            self.spatial_attention = PartialSpatialAttention(channels, norm_cfg, spatial_attention == 'full', deploy)
        self.has_matrix_form = has_matrix_form(token_mixer, self.spatial_attention)
        self.merged = deploy
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale = None
        # The merged form has it in its convolutions.
        if layer_scale_init_value > 0 and not deploy:
            self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), float(layer_scale_init_value)))
        self.stored_as_read = False
        if deploy:
            self._store_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        if self.has_matrix_form and runs_as_matrices(self, x):
            return run_as_matrices(self, x)
        return x + self.drop_path(self._mix_channels(self.token_mixer(x)))

    def _mix_channels(self, x: Tensor) -> Tensor:
        x = self.mlp(x)
        if self.spatial_attention is not None:
            x = self.spatial_attention(x)
        return x if self.layer_scale is None else x * self.layer_scale

    def switch_to_deploy(self) -> None:
        """Merges all norms, PAT_sp and the layer scale; does nothing the second time."""
        if self.merged:
            return
        self.merged = True
        self.mlp.switch_to_deploy()
        affine = getattr(self.token_mixer, 'output_affine', lambda: None)()
        if affine is not None:
            self.mlp.conv1 = fold_affine_before(self.mlp.conv1, *affine)
        if hasattr(self.token_mixer, 'switch_to_deploy'):
            self.token_mixer.switch_to_deploy()
        if self.spatial_attention is not None:
            self.mlp.conv2 = self.spatial_attention.merge_into(self.mlp.conv2, self.layer_scale)
        else:
            self.mlp.conv2 = fold_scale_after(self.mlp.conv2, self.layer_scale)
        self.layer_scale = None
        self._store_weights()

    def _store_weights(self) -> None:
        on_cpu = self.mlp.conv1.weight.device.type == 'cpu'
        if on_cpu and self.merged and self.has_matrix_form and reads_weights_from_memory(self):
            store_as_read(self)
            self.stored_as_read = True
        elif self.stored_as_read:
            store_as_usual(self)
            self.stored_as_read = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'PartialNetBlock':
        super()._apply(fn, recurse)
        self._store_weights()  # it may have been moved to another device
        return self


class PartialNetBlockV2(PartialNetBlock):
    """PartialNet block v2 (Fig. 3 (d)), the block of stage 4.

    ``x = x + PAT_sf(x)``, then ``x + DropPath(layer_scale * PAT_sp(MLP(x)))``:
    a residual for each half keeps the training with self-attention stable.
    Arguments as in :class:`PartialNetBlock`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        if self.has_matrix_form and runs_as_matrices(self, x):
            return run_as_matrices(self, x)
        x = x + self.token_mixer(x)
        return x + self.drop_path(self._mix_channels(x))
