# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""PartialNet once more, in plain functions on a state dict in the official layout.

Written from the paper's description, for comparison: it shares no code with the
package. The block is the official code's: a stage has a channel type, 'self' in
stage 4 and 'se' in the others, whatever its token mixers are built of. Type
'self' gives block v2, whose token mixer has a residual of its own,
``x = x + mixer(x); x = x + mlp(x)``; type 'se' gives block v1,
``x = x + mlp(mixer(x))``. So networks without channel attention (``attn`` off)
keep block v2 in stage 4, and no tensor shows it. FasterNet's code has block v1
in all stages.
"""
import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

StateDict = dict[str, Tensor]
CLASSES = 1000
#: Channel types of the stages in the official code, and those that give FasterNet's blocks.
OFFICIAL_TYPES, FASTERNET_TYPES = ('se', 'se', 'se', 'self'), ('se', ) * 4
HEAD_WIDTH = 1280


def hard_sigmoid(x: Tensor) -> Tensor:
    return ((x + 3) / 6).clamp(0, 1)


def batch_norm(state: StateDict, name: str, x: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    normalized = (x - state[f'{name}.running_mean'].view(shape)) / (state[f'{name}.running_var'].view(shape)
                                                                     + 1e-5).sqrt()
    return normalized * state[f'{name}.weight'].view(shape) + state[f'{name}.bias'].view(shape)


def bucket(row_offset: int, column_offset: int) -> int:
    """iRPE's piecewise index of a distance, alpha 20, beta 40, gamma 160."""
    distance = round(math.sqrt(row_offset**2 + column_offset**2))
    if distance <= 20:
        return distance
    return min(40, round(20 + math.log(distance / 20) / math.log(160 / 20) * 20))


def pairwise_buckets(height: int, width: int) -> Tensor:
    pixels = [(row, column) for row in range(height) for column in range(width)]
    return torch.tensor([[bucket(r1 - r2, c1 - c2) for r2, c2 in pixels] for r1, c1 in pixels])


def gaussian_gate(weight: Tensor, x: Tensor) -> Tensor:
    """The gate before its norm, as an actual convolution of kernel (1, 2): (B, C, H, W) to (B, C, 1, 1)."""
    statistics = torch.stack((x.mean((2, 3)), x.flatten(2).var(2, unbiased=True).sqrt()), dim=-1)
    return F.conv2d(statistics.unsqueeze(2), weight)


def partial_convolution(state: StateDict, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The convolved channels, and the others as they are."""
    weight = state[f'{name}.partial_conv3.weight']
    return F.conv2d(x[:, :len(weight)], weight, padding=1), x[:, len(weight):]


def token_mixer(state: StateDict, name: str, x: Tensor) -> Tensor:
    """PAT_sf, PAT_ch, or partial convolution alone, by what the state dict has."""
    if f'{name}.attn.qkv.weight' in state:
        return self_attention(state, name, x)
    return channel_attention(state, name, x)


def channel_attention(state: StateDict, name: str, x: Tensor) -> Tensor:
    """PAT_ch; partial convolution alone where the state dict has no gate."""
    conv_part, attended = partial_convolution(state, name, x)
    if f'{name}.attn.cfc1.weight' not in state:
        return torch.cat((conv_part, attended), dim=1)
    gate = batch_norm(state, f'{name}.attn.bn', gaussian_gate(state[f'{name}.attn.cfc1.weight'], attended))
    attended = batch_norm(state, f'{name}.norm', attended * hard_sigmoid(gate))
    return torch.cat((conv_part, attended), dim=1)


def self_attention(state: StateDict, name: str, x: Tensor) -> Tensor:
    """PAT_sf: softmax written out, one head after the other."""
    conv_part, attended = partial_convolution(state, name, x)
    batch, channels, height, columns = attended.shape
    tokens = attended.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    tokens = F.layer_norm(tokens, (channels, ), state[f'{name}.norm.weight'], state[f'{name}.norm.bias'], eps=1e-6)
    query, key, value = (tokens @ state[f'{name}.attn.qkv.weight'].T).chunk(3, dim=-1)
    table = state[f'{name}.attn.rpe_k.lookup_table_bias']
    # Distances take the second half of the table, from entry 40 on.
    buckets = pairwise_buckets(height, columns) + 40
    head_dim = channels // len(table)
    outs = []
    for head, biases in enumerate(table):
        part = slice(head * head_dim, (head + 1) * head_dim)
        logits = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(head_dim) + biases[buckets]
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        outs.append(weights @ value[..., part])
    tokens = torch.cat(outs, -1) @ state[f'{name}.attn.proj.weight'].T + state[f'{name}.attn.proj.bias']
    attended = tokens.reshape(batch, height, columns, channels).permute(0, 3, 1, 2)
    return torch.cat((conv_part, attended), dim=1)


def spatial_attention(state: StateDict, name: str, x: Tensor) -> Tensor:
    """PAT_sp; nothing where the state dict has none."""
    if f'{name}.conv.weight' not in state:
        return x
    attended, rest = x.chunk(2, dim=1)
    logit = (attended * state[f'{name}.conv_attn.weight']).sum(1, keepdim=True)
    attended = batch_norm(state, f'{name}.norm', attended * hard_sigmoid(logit))
    return torch.cat((attended, F.conv2d(batch_norm(state, f'{name}.norm2', rest), state[f'{name}.conv.weight'])), 1)


def mlp(state: StateDict, name: str, x: Tensor, activation: str) -> Tensor:
    x = batch_norm(state, f'{name}.1', F.conv2d(x, state[f'{name}.0.weight']))
    x = F.conv2d(F.gelu(x) if activation == 'GELU' else F.relu(x), state[f'{name}.3.weight'])
    return spatial_attention(state, f'{name}.4', x)


def forward(state: StateDict, x: Tensor, depths: Sequence[int], activation: str,
            types: Sequence[str] = OFFICIAL_TYPES) -> list[Tensor]:
    """Feature maps of all four stages, with their norms where there are any; the class scores where there is a head.

    ``types`` are the channel types of the stages.
    """
    outs = []
    x = batch_norm(state, 'patch_embed.norm', F.conv2d(x, state['patch_embed.proj.weight'], stride=4))
    for stage, depth in enumerate(depths):
        for j in range(depth):
            block = f'stages.{2 * stage}.blocks.{j}'
            mixed = token_mixer(state, f'{block}.spatial_mixing', x)
            if types[stage] == 'self':
                x = mixed = x + mixed
            x = x + mlp(state, f'{block}.mlp', mixed, activation)
        norm = f'norm{2 * stage}'
        outs.append(batch_norm(state, norm, x) if f'{norm}.weight' in state else x)
        if stage < 3:
            merging = f'stages.{2 * stage + 1}'
            x = batch_norm(state, f'{merging}.norm', F.conv2d(x, state[f'{merging}.reduction.weight'], stride=2))
    if 'head.weight' in state:
        x = F.conv2d(x.mean((2, 3), keepdim=True), state['avgpool_pre_head.1.weight'])
        x = F.gelu(x) if activation == 'GELU' else F.relu(x)
        outs.append(x.flatten(1) @ state['head.weight'].T + state['head.bias'])
    return outs


def random_state(embed_dim: int, depths: Sequence[int], num_heads: int, detection: bool,
                 attentions: Sequence[str] = ('ch', 'ch', 'ch', 'sf'), with_spatial: bool = True,
                 n_div: int = 4) -> StateDict:
    """Random weights and statistics in the official layout of a classifier, or of a detector's backbone.

    ``attentions`` of each stage is 'ch', 'sf' or 'none'; one part in ``n_div`` is convolved.
    """
    state: StateDict = {}

    def weight(name: str, *shape: int) -> None:
        fan_in = math.prod(shape[1:])
        state[f'{name}.weight'] = torch.randn(shape) / math.sqrt(fan_in)

    def norm(name: str, channels: int, layer_norm: bool = False) -> None:
        state[f'{name}.weight'] = torch.rand(channels) + 0.5
        state[f'{name}.bias'] = torch.randn(channels) * 0.5
        if not layer_norm:
            state[f'{name}.running_mean'] = torch.randn(channels) * 0.5
            state[f'{name}.running_var'] = torch.rand(channels) * 1.5 + 0.5
            state[f'{name}.num_batches_tracked'] = torch.tensor(7)

    weight('patch_embed.proj', embed_dim, 3, 4, 4)
    norm('patch_embed.norm', embed_dim)
    for stage, depth in enumerate(depths):
        width = embed_dim * 2**stage
        convolved, half = width // n_div, width // 2
        attended = width - convolved
        for j in range(depth):
            block = f'stages.{2 * stage}.blocks.{j}'
            mixing = f'{block}.spatial_mixing'
            weight(f'{mixing}.partial_conv3', convolved, convolved, 3, 3)
            if attentions[stage] != 'none':
                norm(f'{mixing}.norm', attended, layer_norm=attentions[stage] == 'sf')
            if attentions[stage] == 'ch':
                weight(f'{mixing}.attn.cfc1', attended, attended, 1, 2)
                norm(f'{mixing}.attn.bn', attended)
            elif attentions[stage] == 'sf':
                weight(f'{mixing}.attn.qkv', 3 * attended, attended)
                weight(f'{mixing}.attn.proj', attended, attended)
                state[f'{mixing}.attn.proj.bias'] = torch.randn(attended)
                state[f'{mixing}.attn.rpe_k.lookup_table_bias'] = torch.randn(num_heads, 81)
            weight(f'{block}.mlp.0', 2 * width, width, 1, 1)
            norm(f'{block}.mlp.1', 2 * width)
            weight(f'{block}.mlp.3', width, 2 * width, 1, 1)
            if with_spatial:
                weight(f'{block}.mlp.4.conv_attn', 1, half, 1, 1)
                norm(f'{block}.mlp.4.norm', half)
                norm(f'{block}.mlp.4.norm2', half)
                weight(f'{block}.mlp.4.conv', half, half, 1, 1)
        if stage < 3:
            weight(f'stages.{2 * stage + 1}.reduction', 2 * width, width, 2, 2)
            norm(f'stages.{2 * stage + 1}.norm', 2 * width)
        if detection:
            norm(f'norm{2 * stage}', width)
    if not detection:
        weight('avgpool_pre_head.1', HEAD_WIDTH, embed_dim * 8, 1, 1)
        weight('head', CLASSES, HEAD_WIDTH)
        state['head.bias'] = torch.randn(CLASSES)
    return state


RENAMINGS = (
    (r'patch_embed\.proj\.', 'downsample_layers.0.conv.'),
    (r'patch_embed\.norm\.', 'downsample_layers.0.norm.'),
    (r'spatial_mixing\.partial_conv3\.', 'token_mixer.conv.'),
    (r'spatial_mixing\.attn\.cfc1\.', 'token_mixer.gate.conv.'),
    (r'spatial_mixing\.attn\.bn\.', 'token_mixer.gate.norm.'),
    (r'spatial_mixing\.attn\.rpe_k\.lookup_table_bias', 'token_mixer.position_bias.table'),
    (r'spatial_mixing\.attn\.', 'token_mixer.'),
    (r'spatial_mixing\.norm\.', 'token_mixer.norm.'),
    (r'mlp\.0\.', 'mlp.conv1.'),
    (r'mlp\.1\.', 'mlp.norm.'),
    (r'mlp\.3\.', 'mlp.conv2.'),
    (r'mlp\.4\.conv_attn\.', 'spatial_attention.logit_conv.'),
    (r'mlp\.4\.norm\.', 'spatial_attention.attended_norm.'),
    (r'mlp\.4\.norm2\.', 'spatial_attention.rest_norm.'),
    (r'mlp\.4\.conv\.', 'spatial_attention.rest_conv.'),
)


def to_partialnet(state: StateDict) -> StateDict:
    """The same weights under the names of ``PartialNet``; those of the classifier's head are left out."""
    renamed = {}
    for name, value in state.items():
        if name.startswith(('head.', 'avgpool_pre_head.')):
            continue
        for pattern, replacement in RENAMINGS:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r'^stages\.([135])\.(?:reduction|(norm))\.',
                      lambda m: f'downsample_layers.{int(m[1]) // 2 + 1}.{m[2] or "conv"}.', name)
        name = re.sub(r'^stages\.([0246])\.blocks\.', lambda m: f'stages.{int(m[1]) // 2}.', name)
        name = re.sub(r'^norm([0246])\.', lambda m: f'norm{int(m[1]) // 2}.', name)
        renamed[name] = value[:, 40:] if name.endswith('position_bias.table') else value
    return renamed
