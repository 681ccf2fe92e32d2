# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The network: stem and merging layers, MLP, the two blocks, and the PartialNet backbone, in this order."""
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

from ..checkpoint.layouts import (
    OWN_RESIDUAL,
    foreign_layout,
    refuse_other_network,
    separate_logits,
    with_own_names,
)
from ..checkpoint.pretrained import load_pretrained, pretrained_cfg
from ._arguments import named_arguments
from ._checks import check_backbone
from ._folded_training import folded_block, folded_downsample
from ._folding import conv_of, fold_after, local_norm, norm_affine, require_plain, weight_and_bias
from ._layers import check_statistics, checkpointed, has_no_hooks, is_compiling, normalize, recomputed
from .dpconv.fixed_ratios import searched_layers
from .merged_block import MergedBlock
from .patconv import PartialSpatialAttention
from .token_mixers import build_token_mixer


class Downsample(nn.Module):
    """Convolution with kernel = stride, then a norm: the stem and the merging layers (Fig. 3).

    Rows and columns that fill no whole kernel are left out, so any size works.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Kernel and stride: 4 for the stem, 2 for merging.
        norm_cfg: Norm. Defaults to ``dict(type='BN')``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm_cfg: dict = dict(type='BN')) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, stride, stride, bias=False)
        self.norm = build_norm_layer(norm_cfg, out_channels)[1]
        self.train_folded = False  # set by PartialNet

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C_in, H, W) to (B, C_out, H // stride, W // stride)."""
        if self.train_folded:
            return folded_downsample(self, x)
        return normalize(self.norm, self.conv(x))

    def fold(self, training: bool = False) -> tuple[Tensor, Tensor]:
        """Weight and bias of the convolution that computes the same, see :func:`norm_affine`."""
        weight, bias = weight_and_bias(require_plain(self.conv, 'the convolution of Downsample'), training)
        affine = norm_affine(self.norm, 'the norm of Downsample', len(weight), weight.device, training)
        return fold_after(weight, bias, affine)

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """The convolution that computes the same at inference; the layer stays as it is."""
        return conv_of(nn.Conv2d, self.conv, *self.fold())


class ConvMLP(nn.Module):
    """1x1 convolution to twice the width, norm, activation, 1x1 convolution back (Fig. 3).

    Args:
        channels: Channels of the input and of the output.
        norm_cfg: Norm of the hidden layer. Defaults to ``dict(type='BN')``.
        act_cfg: Activation. Defaults to ``dict(type='ReLU')``.
    """

    expansion = 2
    #: Whether the backward pass computes norm and activation again instead of keeping their outputs.
    recompute = False

    def __init__(self,
                 channels: int,
                 norm_cfg: dict = dict(type='BN'),
                 act_cfg: dict = dict(type='ReLU')) -> None:
        super().__init__()
        hidden = channels * self.expansion
        self.conv1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.norm = build_norm_layer(norm_cfg, hidden)[1]
        self.act = build_activation_layer(act_cfg)
        self.conv2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        return self.project(self.conv1(x))

    def project(self, hidden: Tensor) -> Tensor:
        """All after the first convolution, (B, 2C, H, W) to (B, C, H, W)."""
        return recomputed(self, lambda normalize, hidden: self.conv2(self.act(normalize(self.norm, hidden))), hidden)


class PartialNetBlock(nn.Module):
    """PartialNet block v1 (Fig. 3 (a)), the block of stages 1-3.

    ``x + DropPath(layer_scale * PAT_sp(MLP(PAT_ch(x))))``. With a partial
    convolution as mixer and no spatial attention it is FasterNet's block.

    Args:
        token_mixer: PAT_ch, or any layer from (B, C, H, W) to the same. Its
            method ``merged``, where it has one, returns its inference form and
            the scale and shift of the output that this form leaves out.
        channels: Channels of the input and of the output.
        norm_cfg: Norms of MLP and PAT_sp. Defaults to ``dict(type='BN')``.
        act_cfg: Activation of the MLP. Defaults to ``dict(type='ReLU')``.
        drop_path_rate: Probability of dropping the branch. Defaults to 0.
        layer_scale_init_value: Initial factor on each channel of the branch;
            0 for none. Defaults to 0.
        spatial_attention: What follows the MLP: 'partial' for PAT_sp, 'full'
            for its form over all channels (Table 3), 'none' (Table 4).
            Defaults to 'partial'.
        with_cp: Whether the block is computed twice to save memory in
            training; 'norm_act' for its norms, activations and gated products
            only. Defaults to False.
    """

    #: Whether the token mixer has a residual of its own.
    mixer_residual = False

    def __init__(self,
                 token_mixer: nn.Module,
                 channels: int,
                 norm_cfg: dict = dict(type='BN'),
                 act_cfg: dict = dict(type='ReLU'),
                 drop_path_rate: float = 0.,
                 layer_scale_init_value: float = 0.,
                 spatial_attention: str = 'partial',
                 with_cp: bool | str = False) -> None:
        super().__init__()
        self.recompute = with_cp == 'norm_act'
        self.with_cp = bool(with_cp) and not self.recompute
        self.train_folded = False  # set by PartialNet
        self.token_mixer = token_mixer
        self.mlp = ConvMLP(channels, norm_cfg, act_cfg)
        self.mlp.recompute = self.recompute
        self.spatial_attention: nn.Module | None = None
        if spatial_attention != 'none':
            self.spatial_attention = PartialSpatialAttention(channels, norm_cfg, spatial_attention == 'full')
            self.spatial_attention.recompute = self.recompute
        self.drop_path = DropPath(drop_path_rate)
        self.layer_scale: nn.Parameter | None = None
        if layer_scale_init_value > 0:
            self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), float(layer_scale_init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C, H, W)."""
        mix = partial(folded_block, self) if self.train_folded else self.mix
        if self.with_cp and self.training:
            return checkpointed(self, mix, x)
        return mix(x)

    def mix(self, x: Tensor) -> Tensor:
        """The block itself, from (B, C, H, W) to the same."""
        mixer, mlp = self.token_mixer, self.mlp
        if not (self.recompute and getattr(mixer, 'attends_beside', False) and has_no_hooks(mixer)
                and has_no_hooks(mlp)):
            return x + self.drop_path(self.mix_channels(mixer(x)))
        # What the first convolution of the MLP gets is computed again as well.
        hidden = recomputed(self, lambda normalize, *parts: mlp.conv1(mixer.join(normalize, *parts)),
                            *mixer.convolve_and_gate(x))
        return x + self.drop_path(self.attend(mlp.project(hidden)))

    def mix_channels(self, x: Tensor) -> Tensor:
        """MLP, spatial attention and layer scale, from (B, C, H, W) to the same."""
        return self.attend(self.mlp(x))

    def attend(self, x: Tensor) -> Tensor:
        """Spatial attention and layer scale, from (B, C, H, W) to the same."""
        if self.spatial_attention is not None:
            x = self.spatial_attention(x)
        return x if self.layer_scale is None else x * self.layer_scale


class PartialNetBlockV2(PartialNetBlock):
    """PartialNet block v2 (Fig. 3 (d)), the block of stage 4.

    ``x = x + PAT_sf(x)``, then ``x + DropPath(layer_scale * PAT_sp(MLP(x)))``:
    a residual for each half keeps the training with self-attention stable.
    Arguments as in :class:`PartialNetBlock`.
    """

    mixer_residual = True

    def mix(self, x: Tensor) -> Tensor:
        """The block itself, from (B, C, H, W) to the same."""
        x = x + self.token_mixer(x)
        return x + self.drop_path(self.mix_channels(x))


@MODELS.register_module()
class PartialNet(BaseModule):
    """PartialNet, as a backbone for classification and dense prediction.

    Paper: `Partial Channel Network: Compute Fewer, Perform Better
    <https://arxiv.org/abs/2502.01303>`_

    Four stages of blocks, each after a layer that divides the resolution (by 4,
    then by 2, 2, 2). Stages 1-3 have :class:`PartialNetBlock` with PAT_ch,
    stage 4 has :class:`PartialNetBlockV2` with PAT_sf; all have PAT_sp.

    Args:
        arch: Name of a variant in :attr:`arch_settings`: 't0', 't1', 't2',
            's', 'm', 'l', 't0-appendix', 't1-appendix'; or a dict with the
            same keys: ``embed_dim`` (int, width of stage 1, even), ``depths``
            (four ints), ``num_heads`` (int), ``act_cfg`` (dict). Defaults to
            't0'.
        in_channels: Channels of the image. Defaults to 3.
        split_ratio: Fraction of the channels that is convolved, in (0, 1]:
            one for all blocks, or one per block. A learned ratio starts at
            it. Defaults to 1/4.
        out_indices: Stages whose feature maps are returned, 0-3 or, from the
            end, -4 to -1. Defaults to (3, ).
        out_norm: Whether each returned feature map goes through a norm of its
            own, ``norm{i}``. None: if more than one is returned, which is
            dense prediction; the paper's classifier has none. Defaults to
            None.
        frozen_stages: Stages that do not learn: -1 none, 0 the stem, 1-4 also
            stages 1 to that one with their output norms. Their norms stay in
            evaluation mode. Defaults to -1.
        norm_cfg: Norm of all layers except the attention's. Defaults to
            ``dict(type='BN')``.
        act_cfg: Activation; None for that of the variant. Defaults to None.
        drop_path_rate: Stochastic depth of the last block, growing linearly
            from 0 at the first. Defaults to 0.
        layer_scale_init_value: Initial layer scale; 0 for none. Defaults to 0.
        attn_drop_rate: Dropout of PAT_sf's attention weights. Defaults to 0.
        proj_drop_rate: Dropout after PAT_sf's projection. Defaults to 0.
        token_mixers: Token mixer of all stages or of each: 'pat_ch', 'pat_sf';
            for the paper's ablations 'full_ch', 'full_sf', 'partial_conv',
            'conv', 'depthwise_conv' (Tables 3, 4, 6 and 13); to learn the
            split ratios 'dpconv', 'dpconv_ch' (Sec. 3.2); or the config of a
            registered layer, see :func:`build_token_mixer`. Defaults to
            ('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf').
        gate: Gate of the channel attention: 'gaussian', 'srm' or 'se' (Table
            12), 'eca', 'cbam', or the config of a registered gate, see
            :func:`build_gate`. Defaults to 'gaussian'.
        spatial_attention: What follows each MLP: 'partial' for PAT_sp, 'full'
            for its form over all channels (Table 3), 'none' (Table 4).
            Defaults to 'partial'.
        norm_eval: Whether the batch norms of all layers keep the statistics of
            the pretraining, as for 2 images per GPU, where a gate's norm gets
            two values per channel. The norms of returned feature maps train:
            no pretraining has statistics for them, they get H x W values per
            image, and the official code trains them. Without loaded
            statistics, the first training step logs a warning. Defaults to
            False.
        with_cp: Whether blocks are computed twice to save memory in training.
            'norm_act' computes only norms, activations and gated products
            twice, which costs less time and saves less. A compiler chooses
            by itself what it computes twice, and ignores 'norm_act'.
            Defaults to False.
        deploy: Whether to merge the network when it is built, for checkpoints
            written after :meth:`switch_to_deploy`. Defaults to False.
        init_cfg: Initialization; None for a truncated normal of std 0.02.
            ``dict(type='Pretrained', checkpoint=..., prefix='backbone.')``
            loads a checkpoint and raises if it brings less than 90 % of the
            backbone. Defaults to None.
        num_heads: Attention heads; None for those of the variant. Checkpoints
            of the official code may have 4 in any variant. Defaults to None.
        mixer_residual: Whether the token mixers of all stages, or of each,
            have a residual of their own, so that their blocks are
            :class:`PartialNetBlockV2`. None: as the mixer demands, which PAT_sf
            does. The official code without channel attention has
            (False, False, False, True), FasterNet False. Defaults to None.
        train_folded: Whether training computes in the folded form: at each
            step, batch norms, PAT_sp and layer scale are folded into the
            convolutions, as functions of the parameters. Outputs and
            gradients stay the same to rounding, with less memory and time.
            Needs ``norm_eval`` and batch norms; 'auto': where both are set.
            Evaluation computes as without it. Defaults to False.

    Raises:
        ValueError: If an argument is outside its range, or a name unknown.
        TypeError: If an argument is unknown.
        KeyError: If a layer's type is not registered.
    """

    arch_settings: dict[str, dict] = {
        't0': dict(embed_dim=32, depths=(1, 2, 6, 4), num_heads=4, act_cfg=dict(type='GELU')),
        't1': dict(embed_dim=48, depths=(1, 2, 6, 4), num_heads=6, act_cfg=dict(type='GELU')),
        't2': dict(embed_dim=64, depths=(2, 2, 6, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        's': dict(embed_dim=96, depths=(2, 2, 9, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        'm': dict(embed_dim=128, depths=(2, 3, 16, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        'l': dict(embed_dim=160, depths=(2, 3, 20, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        # Blocks as printed in the paper's appendix. They do not give the sizes printed beside
        # them; those of 't0' and 't1' above do.
        't0-appendix': dict(embed_dim=32, depths=(1, 2, 8, 2), num_heads=4, act_cfg=dict(type='GELU')),
        't1-appendix': dict(embed_dim=48, depths=(1, 2, 8, 2), num_heads=6, act_cfg=dict(type='GELU')),
    }
    num_stages = 4
    min_size = 32

    @named_arguments
    def __init__(self,
                 arch: str | dict = 't0',
                 in_channels: int = 3,
                 split_ratio: float | Sequence[float] = 0.25,
                 out_indices: int | Sequence[int] = (3, ),
                 out_norm: bool | None = None,
                 frozen_stages: int = -1,
                 norm_cfg: dict = dict(type='BN'),
                 act_cfg: dict | None = None,
                 drop_path_rate: float = 0.,
                 layer_scale_init_value: float = 0.,
                 attn_drop_rate: float = 0.,
                 proj_drop_rate: float = 0.,
                 token_mixers: str | dict | Sequence[str | dict] = ('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf'),
                 gate: str | dict = 'gaussian',
                 spatial_attention: str = 'partial',
                 norm_eval: bool = False,
                 with_cp: bool | str = False,
                 deploy: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 num_heads: int | None = None,
                 mixer_residual: bool | Sequence[bool] | None = None,
                 train_folded: bool | str = False) -> None:
        # A pretrained checkpoint comes over the ordinary initialization: see init_weights.
        self.pretrained = pretrained_cfg(init_cfg)
        if init_cfg is None or self.pretrained is not None:
            init_cfg = [
                dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.),
                dict(type='Constant', layer=['_BatchNorm', 'LayerNorm', 'GroupNorm'], val=1., bias=0.),
            ]
        super().__init__(init_cfg)
        checked = check_backbone(
            self, arch=arch, num_heads=num_heads, in_channels=in_channels, split_ratio=split_ratio,
            out_indices=out_indices, frozen_stages=frozen_stages, token_mixers=token_mixers,
            mixer_residual=mixer_residual, gate=gate, spatial_attention=spatial_attention,
            drop_path_rate=drop_path_rate, attn_drop_rate=attn_drop_rate, proj_drop_rate=proj_drop_rate,
            layer_scale_init_value=layer_scale_init_value, with_cp=with_cp)
        automatic = train_folded == 'auto'
        if automatic:
            train_folded = norm_eval and with_cp != 'norm_act'
        if train_folded and not norm_eval:
            raise ValueError('train_folded=True needs norm_eval=True, got norm_eval=False: batch norms that normalize '
                             'by their batch cannot be folded')
        if train_folded and with_cp == 'norm_act':
            raise ValueError("train_folded=True needs with_cp of True or False, got 'norm_act': the folded form has no "
                             'norms to compute again')
        if deploy:
            norm_cfg = local_norm(norm_cfg)
        self.arch = arch
        self.in_channels = in_channels
        self.out_indices = checked.out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.train_folded = train_folded
        self.mixer_residual = mixer_residual
        self._statistics_checked = False
        self.depths = tuple(checked.arch['depths'])
        self.channels = tuple(checked.arch['embed_dim'] * 2**i for i in range(self.num_stages))
        act_cfg = act_cfg or checked.arch['act_cfg']

        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        drop_path_rates = iter(torch.linspace(0, drop_path_rate, sum(self.depths), device='cpu').tolist())
        split_ratios = iter(checked.split_ratios)
        for i, (channels, depth) in enumerate(zip(self.channels, self.depths)):
            self.downsample_layers.append(
                Downsample(self.channels[i - 1] if i else in_channels, channels, 2 if i else 4, norm_cfg))
            blocks = nn.Sequential()
            for _ in range(depth):
                mixer = build_token_mixer(
                    checked.token_mixers[i], channels, num_heads=checked.arch['num_heads'],
                    split_ratio=next(split_ratios), norm_cfg=norm_cfg, gate=gate, attn_drop_rate=attn_drop_rate,
                    proj_drop_rate=proj_drop_rate)
                demanded = getattr(mixer, 'own_residual', False)
                residual = demanded if mixer_residual is None else checked.mixer_residual[i]
                block = (PartialNetBlockV2 if residual else PartialNetBlock)(
                    mixer, channels, norm_cfg, act_cfg, next(drop_path_rates), layer_scale_init_value,
                    spatial_attention, with_cp)
                if residual != demanded:  # no other tensor shows it
                    block.register_buffer(OWN_RESIDUAL, torch.tensor(int(residual)))
                blocks.append(block)
            self.stages.append(blocks)
        if out_norm is None:
            out_norm = len(self.out_indices) > 1
        for i in self.out_indices:
            norm = build_norm_layer(norm_cfg, self.channels[i])[1] if out_norm else nn.Identity()
            self.add_module(f'norm{i}', norm)
        if train_folded and not isinstance(self.downsample_layers[0].norm, _BatchNorm):
            if not automatic:
                raise ValueError(f'train_folded=True needs batch norms, got norm_cfg={norm_cfg!r}: other norms depend '
                                 'on their input and cannot be folded')
            self.train_folded = False
        if deploy:
            self._merge()
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the feature maps of the stages in ``out_indices``.

        Args:
            x: Images, (B, in_channels, H, W), H and W at least 32.

        Returns:
            (B, C_i, H // s_i, W // s_i) for strides s of 4, 8, 16 and 32, in
            the order of the stages.

        Raises:
            ValueError: If the input has another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.min_size:
            raise ValueError(f'PartialNet needs images of shape (B, {self.in_channels}, H, W) with H and W of at '
                             f'least {self.min_size}, got {tuple(x.shape)}')
        if self.norm_eval and self.training and not self._statistics_checked and not is_compiling():
            self._statistics_checked = check_statistics(
                self._pretrained_norms(), 'PartialNet', ', as configs/mask_rcnn/partialnet_t0_scratch.py does')
        outs = []
        contiguous = x.is_contiguous()
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x))
            if i in self.out_indices:
                out = normalize(getattr(self, f'norm{i}'), x)
                # Merged blocks work in channels_last. Callers get the format that they gave: mmcv's RoIAlign, for
                # one, takes every feature map on a CPU for a contiguous one.
                outs.append(out.contiguous() if contiguous else out)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'PartialNet':
        """Sets the mode; frozen stages, and with ``norm_eval`` the batch norms of layers, stay in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for norm in self._pretrained_norms():
                norm.eval()
        for module in self.modules():
            if isinstance(module, (Downsample, PartialNetBlock)):
                module.train_folded = mode and self.train_folded
        return self

    def _pretrained_norms(self) -> Iterator[nn.Module]:
        """The batch norms of all layers: those that a checkpoint of the pretraining has statistics for."""
        for layers in (self.downsample_layers, self.stages):
            yield from (module for module in layers.modules() if isinstance(module, _BatchNorm))

    def _freeze_stages(self) -> None:
        frozen: list[nn.Module] = []
        if self.frozen_stages >= 0:
            frozen.append(self.downsample_layers[0])
        for i in range(self.frozen_stages):
            frozen += [self.downsample_layers[i], self.stages[i]]
            if i in self.out_indices:
                frozen.append(getattr(self, f'norm{i}'))
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def init_weights(self) -> None:
        """Initializes the weights, from the checkpoint of ``init_cfg`` where one is named.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If it cannot be read, or belongs to another network.
        """
        super().init_weights()
        if self.pretrained is not None:
            load_pretrained(self, **self.pretrained)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        own_state = self.state_dict()
        state_dict.update(separate_logits(state_dict))  # torch and mmengine give each module a dict of its own
        given = {name[len(prefix):]: value for name, value in state_dict.items() if name.startswith(prefix)}
        layout, file = None, 'the checkpoint'
        if (renamed := with_own_names(given, self.mixer_residual, file)) is not None:
            layout = foreign_layout(given)
            given = {name.removeprefix('backbone.'): value for name, value in renamed.items()}
            for name in [name for name in state_dict if name.startswith(prefix)]:
                del state_dict[name]
            state_dict.update((prefix + name, value) for name, value in given.items())
        refuse_other_network(own_state, given, layout, self.mixer_residual is not None, file)
        # A mixer that learns its ratio has tensors of all channels; another mixer would take those that fit by chance.
        own = searched_layers(own_state)
        foreign = [name for name in searched_layers(state_dict)
                   if name.startswith(f'{prefix}stages.') and name[len(prefix):] not in own]
        if foreign:
            raise ValueError(f'the checkpoint is of a search for split ratios: {len(foreign)} layers have gates, and '
                             f'fixed ratios here, first {foreign[0]!r}. tools/model_converters/dpconv_to_fixed.py '
                             "takes the gates out; token_mixers='dpconv' or 'dpconv_ch' builds a network that has them")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def switch_to_deploy(self) -> None:
        """Merges norms, PAT_sp and layer scales into the convolutions (Sec. 3.1, appendix Fig. 1 (d)).

        Each block becomes a :class:`MergedBlock`, stem and merging layers
        become their folded convolutions. The outputs in evaluation mode stay
        the same to rounding. Norms of returned feature maps remain: a sum
        comes before them. Does nothing the second time, and nothing at all
        where it raises.

        Raises:
            TypeError: If ``norm_cfg`` is not a batch norm, or something sits
                on a layer that is folded.
            ValueError: If a norm has no running statistics to fold.
        """
        self._merge()
        self.eval()

    def _merge(self) -> None:
        # All is computed before anything is replaced, so that an error leaves the network whole.
        convs = {layer: layer.folded() for layer in self.downsample_layers if not isinstance(layer.norm, nn.Identity)}
        blocks = [[block if isinstance(block, MergedBlock) else MergedBlock(block) for block in stage]
                  for stage in self.stages]
        for layer, conv in convs.items():
            layer.conv, layer.norm = conv, nn.Identity()
        for stage, merged in zip(self.stages, blocks):
            for j, block in enumerate(merged):
                stage[j] = block

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for mmpretrain's layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter.
            prefix: What comes before the backbone's own names. Defaults
                to ''.

        Returns:
            The layer's index and the number of layers: the stem is 0, each
            block is a layer, and a merging layer belongs to the block after
            it.
        """
        num_layers = sum(self.depths) + 2
        name = param_name[len(prefix):]
        if not param_name.startswith(prefix) or name.split('.')[0] not in ('downsample_layers', 'stages'):
            return num_layers - 1, num_layers
        kind, stage, *rest = name.split('.')
        if kind == 'downsample_layers' and stage == '0':
            return 0, num_layers
        block = 0 if kind == 'downsample_layers' else int(rest[0])
        return sum(self.depths[:int(stage)]) + block + 1, num_layers
