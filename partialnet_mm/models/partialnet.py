# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The PartialNet backbone."""
from collections.abc import Sequence
from numbers import Real

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.utils.dl_utils.parrots_wrapper import _BatchNorm
from torch import Tensor, nn

from ..checkpoint.pretrained import load_pretrained, pretrained_cfg
from ._arguments import named_arguments
from ._layers import checkpointed, normalize
from .block import PartialNetBlock, PartialNetBlockV2
from .downsample import Downsample
from .dpconv.fixed_ratios import searched_layers
from .gates import GATES
from .token_mixers import CHANNEL_ATTENTIONS, SELF_ATTENTIONS, build_token_mixer


@MODELS.register_module()
class PartialNet(BaseModule):
    """PartialNet, as a classification or dense prediction backbone.

    Paper: `Partial Channel Network: Compute Fewer, Perform Better
    <https://arxiv.org/abs/2502.01303>`_

    Four stages of blocks, each behind a layer that divides the resolution (by
    4, then 2, 2, 2). Stages 1-3 have :class:`PartialNetBlock` with PAT_ch,
    stage 4 has :class:`PartialNetBlockV2` with PAT_sf; all have PAT_sp.

    Args:
        arch: Name of a variant in :attr:`arch_settings`: 't0',
            't1', 't2', 's', 'm', 'l', 't0-appendix', 't1-appendix'; or a dict
            with the same keys: ``embed_dim`` (int, width of stage 1, even),
            ``depths`` (four ints), ``num_heads`` (int), ``act_cfg`` (dict).
            Defaults to 't0'.
        in_channels: Channels of the image. Defaults to 3.
        split_ratio: Part of the channels that is
            convolved, in (0, 1]: one for all blocks, or one a block; what a
            learned one starts at. Defaults to 1/4.
        out_indices: Stages whose maps are returned, 0-3
            or, from the end, -4 to -1. Defaults to (3, ).
        out_norm: Whether each returned map goes through a
            norm of its own, ``norm{i}``. None: if more than one map is
            returned, which is dense prediction; the paper's classifier has
            none. Defaults to None.
        frozen_stages: Stages that do not learn: -1 none, 0 the stem,
            1-4 also stages 1 to that one with their output norms. Their norms
            stay in evaluation mode. Defaults to -1.
        norm_cfg: Norm of all layers but the attention's. Defaults to
            ``dict(type='BN')``.
        act_cfg: Activation; None for the variant's own.
            Defaults to None.
        drop_path_rate: Stochastic depth of the last block, growing
            linearly from 0 at the first. Defaults to 0.
        layer_scale_init_value: Initial layer scale; 0 for none.
            Defaults to 0.
        attn_drop_rate: Dropout of PAT_sf's attention weights. Defaults
            to 0.
        proj_drop_rate: Dropout after PAT_sf's projection. Defaults to
            0.
        token_mixers: Token mixer of all stages or of
            each: 'pat_ch', 'pat_sf', or, for the paper's ablations, 'full_ch',
            'full_sf', 'partial_conv', 'conv', 'depthwise_conv' (Tables 3, 4, 6
            and 13), or, to learn the split ratios, 'dpconv', 'dpconv_ch' (Sec.
            3.2). Defaults to ('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf').
        gate: Gate of the channel attention: 'gaussian', 'srm' or 'se'
            (Table 12). Defaults to 'gaussian'.
        spatial_attention: What follows each MLP: 'partial' for PAT_sp,
            'full' for its form over all channels (Table 3), 'none' (Table 4).
            Defaults to 'partial'.
        norm_eval: Whether batch norms stay in evaluation mode while
            training, as for 2 images a GPU. Defaults to False.
        with_cp: Whether blocks are computed twice to save memory in
            training. Defaults to False.
        deploy: Whether to build the merged form, for checkpoints
            written after :meth:`switch_to_deploy`. Defaults to False.
        init_cfg: Initialization; None for a
            truncated normal of std 0.02. ``dict(type='Pretrained',
            checkpoint=..., prefix='backbone.')`` loads a checkpoint and raises
            if less than 90 % of the backbone arrives. Defaults to None.

    Raises:
        ValueError: If an argument is outside its range, or a name unknown.
        TypeError: If an argument is unknown.
    """

    arch_settings: dict[str, dict] = {
        't0': dict(embed_dim=32, depths=(1, 2, 6, 4), num_heads=4, act_cfg=dict(type='GELU')),
        't1': dict(embed_dim=48, depths=(1, 2, 6, 4), num_heads=6, act_cfg=dict(type='GELU')),
        't2': dict(embed_dim=64, depths=(2, 2, 6, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        's': dict(embed_dim=96, depths=(2, 2, 9, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        'm': dict(embed_dim=128, depths=(2, 3, 16, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        'l': dict(embed_dim=160, depths=(2, 3, 20, 4), num_heads=6, act_cfg=dict(type='ReLU', inplace=True)),
        # Blocks as printed in the paper's appendix. They do not give the sizes printed beside
        # them, those of 't0' and 't1' above do.
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
                 token_mixers: str | Sequence[str] = ('pat_ch', 'pat_ch', 'pat_ch', 'pat_sf'),
                 gate: str = 'gaussian',
                 spatial_attention: str = 'partial',
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 deploy: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        # A pretrained checkpoint comes over the ordinary initialization: see init_weights.
        self.pretrained = pretrained_cfg(init_cfg)
        if init_cfg is None or self.pretrained is not None:
            init_cfg = [
                dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.),
                dict(type='Constant', layer=['_BatchNorm', 'LayerNorm', 'GroupNorm'], val=1., bias=0.),
            ]
        super().__init__(init_cfg)

        settings = self._check_arch(arch)
        depths, num_heads = settings['depths'], settings['num_heads']
        act_cfg = act_cfg or settings['act_cfg']
        split_ratios = self._check_split_ratio(split_ratio, sum(depths))
        token_mixers = self._check_token_mixers(token_mixers)
        if gate not in GATES:
            raise ValueError(f'gate must be one of {GATES}, got {gate!r}')
        if gate != 'gaussian' and not set(token_mixers) & set(CHANNEL_ATTENTIONS):
            raise ValueError(f'gate={gate!r} has no effect: token_mixers={token_mixers} has no channel attention')
        self.out_indices = self._check_out_indices(out_indices)
        if not isinstance(frozen_stages, int) or not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(f'frozen_stages must be an int from -1 (none) to {self.num_stages} (all), '
                             f'got {frozen_stages!r}')
        for name, rate in (('drop_path_rate', drop_path_rate), ('attn_drop_rate', attn_drop_rate),
                           ('proj_drop_rate', proj_drop_rate)):
            if not isinstance(rate, Real) or not 0 <= rate < 1:
                raise ValueError(f'{name} must lie in [0, 1), got {rate!r}')
        if not isinstance(layer_scale_init_value, Real) or not layer_scale_init_value >= 0:
            raise ValueError(f'layer_scale_init_value must be 0 (none) or positive, got {layer_scale_init_value!r}')
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive int, got {in_channels!r}')

        self.arch = arch
        self.in_channels = in_channels
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.depths = depths
        self.channels = tuple(settings['embed_dim'] * 2**i for i in range(self.num_stages))

        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        drop_path_rates = torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist()
        block_index = 0
        for i, (channels, depth) in enumerate(zip(self.channels, depths)):
            self.downsample_layers.append(
                Downsample(self.channels[i - 1] if i else in_channels, channels, 2 if i else 4, norm_cfg, deploy))
            blocks = nn.Sequential()
            for _ in range(depth):
                mixer = build_token_mixer(token_mixers[i], channels, num_heads, split_ratios[block_index], norm_cfg,
                                          gate, attn_drop_rate, proj_drop_rate, deploy)
                block_type = PartialNetBlockV2 if token_mixers[i] in SELF_ATTENTIONS else PartialNetBlock
                blocks.append(block_type(mixer, channels, norm_cfg, act_cfg, drop_path_rates[block_index],
                                         layer_scale_init_value, spatial_attention, deploy))
                block_index += 1
            self.stages.append(blocks)
        if out_norm is None:
            out_norm = len(self.out_indices) > 1
        for i in self.out_indices:
            norm = build_norm_layer(norm_cfg, self.channels[i])[1] if out_norm else nn.Identity()
            self.add_module(f'norm{i}', norm)
        self._freeze_stages()

    @classmethod
    def _check_arch(cls, arch: str | dict) -> dict:
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_settings:
                raise ValueError(f'arch {arch!r} is unknown; allowed are {sorted(cls.arch_settings)} or a dict')
            return cls.arch_settings[arch.lower()]
        keys = set(cls.arch_settings['t0'])
        if not isinstance(arch, dict) or set(arch) != keys:
            raise ValueError(f'arch must be a name or a dict with the keys {sorted(keys)}, got {arch!r}')
        depths, embed_dim, num_heads = arch['depths'], arch['embed_dim'], arch['num_heads']
        if (not isinstance(depths, Sequence) or len(depths) != cls.num_stages
                or any(not isinstance(depth, int) or depth < 1 for depth in depths)):
            raise ValueError(f"arch['depths'] must be {cls.num_stages} positive ints, got {depths!r}")
        if not isinstance(embed_dim, int) or embed_dim < 2 or embed_dim % 2:
            raise ValueError(f"arch['embed_dim'] must be an even positive int, got {embed_dim!r}")
        if not isinstance(num_heads, int) or num_heads < 1:
            raise ValueError(f"arch['num_heads'] must be a positive int, got {num_heads!r}")
        return arch

    @staticmethod
    def _check_split_ratio(split_ratio: float | Sequence[float], num_blocks: int) -> list[float]:
        ratios = [split_ratio] * num_blocks if isinstance(split_ratio, Real) else split_ratio
        if not isinstance(ratios, Sequence) or len(ratios) != num_blocks:
            raise ValueError(f'split_ratio must be one number or one for each of the {num_blocks} blocks, '
                             f'got {split_ratio!r}')
        wrong = [ratio for ratio in ratios if not isinstance(ratio, Real) or not 0 < ratio <= 1]
        if wrong:
            raise ValueError(f'split_ratio must lie in (0, 1], got {wrong[0]!r}')
        return list(ratios)

    @classmethod
    def _check_token_mixers(cls, token_mixers: str | Sequence[str]) -> list[str]:
        names = [token_mixers] * cls.num_stages if isinstance(token_mixers, str) else token_mixers
        if not isinstance(names, Sequence) or len(names) != cls.num_stages:
            raise ValueError(f'token_mixers must be one name or one for each of the {cls.num_stages} stages, '
                             f'got {token_mixers!r}')
        return list(names)

    @classmethod
    def _check_out_indices(cls, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        if (not isinstance(indices, Sequence) or not indices
                or any(not isinstance(i, int) or not -cls.num_stages <= i < cls.num_stages for i in indices)
                or len({i % cls.num_stages for i in indices}) < len(indices)):
            raise ValueError(f'out_indices must be different stages from {-cls.num_stages} to {cls.num_stages - 1}, '
                             f'got {out_indices!r}')
        return tuple(sorted(i % cls.num_stages for i in indices))

    def init_weights(self) -> None:
        """Initializes the weights, from the checkpoint of ``init_cfg`` where one is named.

        Raises:
            FileNotFoundError: If the checkpoint is not there.
            ValueError: If it cannot be read, or belongs to another network.
        """
        super().init_weights()
        if self.pretrained is not None:
            load_pretrained(self, **self.pretrained)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        # A mixer that learns its ratio has tensors of all channels: of these, others would take what fits by chance.
        own = searched_layers(self.state_dict())
        foreign = [name for name in searched_layers(state_dict)
                   if name.startswith(f'{prefix}stages.') and name[len(prefix):] not in own]
        if foreign:
            raise ValueError(f'the checkpoint is of a search for split ratios: {len(foreign)} layers have gates, and '
                             f'fixed ratios here, first {foreign[0]!r}. tools/model_converters/dpconv_to_fixed.py '
                             "takes the gates out; token_mixers='dpconv' or 'dpconv_ch' builds a network that has them")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Computes the maps of the stages in ``out_indices``.

        Args:
            x: Images, (B, in_channels, H, W), H and W at least 32.

        Returns:
            tuple[Tensor]: (B, C_i, H // s_i, W // s_i) for strides s of 4, 8,
            16 and 32, in the order of the stages.

        Raises:
            ValueError: If the input has another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.min_size:
            raise ValueError(f'PartialNet needs images of shape (B, {self.in_channels}, H, W) with H and W of at '
                             f'least {self.min_size}, got {tuple(x.shape)}')
        outs = []
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x)
            for block in stage:
                x = checkpointed(block, x) if self.with_cp and self.training else block(x)
            if i in self.out_indices:
                outs.append(normalize(getattr(self, f'norm{i}'), x))
        return tuple(outs)

    def train(self, mode: bool = True) -> 'PartialNet':
        """Sets the mode, with frozen stages and, for ``norm_eval``, all batch norms kept in evaluation mode."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

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

    def switch_to_deploy(self) -> None:
        """Merges norms and PAT_sp into the convolutions beside them (Sec. 3.1, appendix Fig. 1 (d)).

        The outputs in evaluation mode stay the same to rounding. Norms of
        returned maps remain: a sum comes before them. Does nothing the second
        time.

        Raises:
            TypeError: If ``norm_cfg`` is not a batch norm.
            ValueError: If a norm has no running statistics to merge.
        """
        for layer in self.downsample_layers:
            layer.switch_to_deploy()
        for stage in self.stages:
            for block in stage:
                block.switch_to_deploy()
        self.eval()

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for mmpretrain's layer-wise learning rate decay.

        Args:
            param_name: Name of the parameter.
            prefix: What comes before the backbone's own names. Defaults
                to ''.

        Returns:
            tuple[int, int]: The layer's index and the number of layers: the
            stem is 0, each block is a layer, and a merging layer belongs to
            the block after it.
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
