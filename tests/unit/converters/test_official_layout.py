# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Conversion from and to the official layout, held against a network written from the paper on that layout."""
import argparse
import shlex

import pytest
import torch
from mmengine.config import Config, DictAction
from torch import nn

from partialnet_mm.converters.official_layout import (
    FASTERNETS,
    command_line_options,
    describe,
    from_official,
    to_official,
)
from partialnet_mm.models import PartialNet
from tests.helpers import reference_network
from tests.helpers.libraries import ROOT, build_model

ALL = (0, 1, 2, 3)
OFFICIAL, FASTERNET = reference_network.OFFICIAL_TYPES, reference_network.FASTERNET_TYPES
V2 = (False, False, False, True)
# The official layout of the paper's ablations: arguments of random_state, those of PartialNet that build the same, and
# the channel types of the code that computes it.
VARIANTS = {
    'as the paper': (dict(), dict(), OFFICIAL),
    'no attention': (dict(attentions=['none'] * 4, with_spatial=False),
                     dict(token_mixers=('partial_conv', ) * 4, spatial_attention='none', mixer_residual=V2), OFFICIAL),
    'no channel attention': (dict(attentions=['none'] * 4),
                             dict(token_mixers=('partial_conv', ) * 4, mixer_residual=V2), OFFICIAL),
    'FasterNet': (dict(attentions=['none'] * 4, with_spatial=False),
                  dict(token_mixers=('partial_conv', ) * 4, spatial_attention='none'), FASTERNET),
    'channel attention in all stages': (dict(attentions=['ch'] * 4, with_spatial=False),
                                        dict(token_mixers=('pat_ch', ) * 4, spatial_attention='none'), FASTERNET),
    'no spatial attention': (dict(with_spatial=False), dict(spatial_attention='none'), OFFICIAL),
    'self-attention early': (dict(attentions=['none', 'ch', 'sf', 'sf']),
                             dict(token_mixers=('partial_conv', 'pat_ch', 'pat_sf', 'pat_sf')),
                             ('se', 'se', 'self', 'self')),
    'an eighth convolved': (dict(n_div=8), dict(split_ratio=0.125), OFFICIAL),
}


def stage4_block(variant):
    """What must be stated to convert a variant."""
    changes, _, types = VARIANTS[variant]
    return None if changes.get('attentions', ['sf'])[-1] != 'none' else 'v2' if types == OFFICIAL else 'v1'


def official(arch, detection, **changes):
    settings = PartialNet.arch_settings[arch] if isinstance(arch, str) else arch
    return reference_network.random_state(settings['embed_dim'], settings['depths'], settings['num_heads'], detection,
                                          **changes)


def assert_same(got, expected):
    """The same names and, to the last bit, values."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value), name


def assert_close(got, expected):
    assert got.shape == expected.shape
    assert expected.std() > 0.1  # what is compared is no constant
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def image_classifier(arch):
    """The classifier of the pretraining config."""
    pytest.importorskip('mmpretrain')
    cfg = Config.fromfile(ROOT / f'configs/pretrain/partialnet_{arch}_in1k.py')
    cfg.model.train_cfg = None
    return build_model(cfg).eval()


@pytest.mark.parametrize('arch', ['t0', 't2'])
@torch.no_grad()
def test_a_converted_classifier_computes_the_same(arch):
    state, model, x = official(arch, detection=False), image_classifier(arch), torch.randn(2, 3, 64, 96)
    converted = from_official(state)
    model.load_state_dict(converted['state_dict'], strict=True)
    assert converted['meta'] == dict(backbone=dict(type='PartialNet', arch=arch))
    settings = PartialNet.arch_settings[arch]
    assert_close(model(x), reference_network.forward(state, x, settings['depths'], settings['act_cfg']['type'])[-1])


@pytest.mark.parametrize('arch', ['t0', 't2'])
@torch.no_grad()
def test_a_classifier_computes_the_same_in_the_official_layout(arch, randomize_norms):
    model, x = randomize_norms(image_classifier(arch)), torch.randn(2, 3, 64, 96)
    for table in (b.token_mixer.position_bias.table for b in model.backbone.stages[3]):
        nn.init.normal_(table)
    nn.init.normal_(model.head.layers[1].fc.weight)
    state = to_official(dict(state_dict=model.state_dict(), optimizer=dict()))['state_dict']
    settings = PartialNet.arch_settings[arch]
    assert_close(reference_network.forward(state, x, settings['depths'], settings['act_cfg']['type'])[-1], model(x))


@pytest.mark.parametrize('arch', ['t0', 't2'])
@torch.no_grad()
def test_the_maps_of_a_detector_are_the_same(arch, randomize_norms):
    settings, x = PartialNet.arch_settings[arch], torch.randn(2, 3, 64, 96)
    state, model = official(arch, detection=True), PartialNet(arch, out_indices=ALL).eval()
    converted = from_official({f'backbone.{name}': value for name, value in state.items()})
    assert converted['meta'] == dict(backbone=dict(type='PartialNet', arch=arch, out_indices=ALL))
    nn.ModuleDict(dict(backbone=model)).load_state_dict(converted['state_dict'], strict=True)
    for out, expected in zip(model(x), reference_network.forward(state, x, settings['depths'],
                                                                 settings['act_cfg']['type'])):
        assert_close(out, expected)
    state = to_official(randomize_norms(model).state_dict())['state_dict']
    for out, expected in zip(reference_network.forward(state, x, settings['depths'], settings['act_cfg']['type']),
                             model(x)):
        assert_close(out, expected)


@pytest.mark.parametrize('variant', VARIANTS)
@torch.no_grad()
def test_ablations_compute_the_same(variant, tiny_arch, randomize_norms):
    changes, arguments, types = VARIANTS[variant]
    block = stage4_block(variant)
    x = torch.randn(2, 3, 64, 96)
    state = official(tiny_arch, True, **changes)
    converted = from_official(state, block)
    cfg = converted['meta']['backbone']
    model = PartialNet(tiny_arch, out_indices=ALL, **arguments).eval()
    nn.ModuleDict(dict(backbone=model)).load_state_dict(converted['state_dict'], strict=True)
    for out, expected in zip(model(x), reference_network.forward(state, x, tiny_arch['depths'], 'ReLU', types)):
        assert_close(out, expected)
    # meta holds the same arguments, but for the activation
    sizes = {key: tiny_arch[key] for key in ('embed_dim', 'depths', 'num_heads')}
    if 'pat_sf' not in cfg.get('token_mixers', ('pat_sf', )):
        sizes['num_heads'] = 1  # of no attention
    assert cfg == dict(type='PartialNet', arch=sizes, out_indices=ALL, **arguments)
    # and back
    randomize_norms(model)
    back = to_official(model.state_dict(), stage4_block=block)
    assert back['meta'] == converted['meta'] and set(back['state_dict']) == set(state)
    for out, expected in zip(reference_network.forward(back['state_dict'], x, tiny_arch['depths'], 'ReLU', types),
                             model(x)):
        assert_close(out, expected)
    backbone = {f'backbone.{name}': value for name, value in model.state_dict().items()}
    assert_same(from_official(back, block)['state_dict'], backbone)
    # the file as it is, into the network that states its blocks
    model.mixer_residual = arguments.get('mixer_residual', False)
    model.load_state_dict(state)
    for out, expected in zip(model(x), reference_network.forward(state, x, tiny_arch['depths'], 'ReLU', types)):
        assert_close(out, expected)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_block_of_stage_4_is_asked_for_where_no_tensor_shows_it(variant, tiny_arch):
    changes, arguments, _ = VARIANTS[variant]
    block, state = stage4_block(variant), official(tiny_arch, True, **changes)
    other = dict(v1='v2', v2='v1')
    own = PartialNet(tiny_arch, **arguments).state_dict()
    if block is not None:
        for convert, given in ((from_official, state), (to_official, own)):
            with pytest.raises(ValueError, match=r'No tensor shows the block of its stage 4.*--stage4-block'):
                convert(given)
        with pytest.raises(ValueError, match=f'stage4_block .* is {other[block]}: its stage 4 has block {block}'):
            to_official(own, stage4_block=other[block])
    else:  # then a wrong answer is one
        shown = 'v1' if arguments.get('token_mixers', [''])[-1] == 'pat_ch' else 'v2'
        for convert, given in ((from_official, state), (to_official, own)):
            assert convert(given)['meta'] == convert(given, stage4_block=shown)['meta']
            with pytest.raises(ValueError, match=f'is {other[shown]}: its stage 4 has block {shown}'):
                convert(given, stage4_block=other[shown])


def test_the_block_is_asked_for_where_all_channels_are_convolved(tiny_arch):
    """PAT_sf and a partial convolution have the same tensors then."""
    for mixers, block in ((('pat_sf', ) * 4, 'v2'), ('partial_conv', 'v1')):
        model = PartialNet(tiny_arch, token_mixers=mixers, split_ratio=(1, 1, 1, 1, 1), mixer_residual=None)
        for layout in ('official', 'timm'):
            with pytest.raises(ValueError, match='No tensor shows the block'):
                to_official(model.state_dict(), layout=layout)
        if block == 'v1':
            assert 'mixer_residual' not in to_official(model.state_dict(), stage4_block=block)['meta']['backbone']


@pytest.mark.parametrize('arguments, message', [
    (dict(mixer_residual=True), "'pat_ch' of its stage 1 have a residual"),
    (dict(mixer_residual=False), "'pat_sf' of its stage 4 have no residual"),
], ids=str)
def test_blocks_that_other_code_does_not_have(arguments, message, tiny_arch):
    with pytest.raises(ValueError, match=message):
        to_official(PartialNet(tiny_arch, **arguments).state_dict())


@pytest.mark.parametrize('size', FASTERNETS)
@torch.no_grad()
def test_fasternet_of_timm_and_of_its_own_code(size, randomize_norms):
    """All six sizes build from what is read; the smallest ones are computed, in both layouts and back."""
    timm = pytest.importorskip('timm')
    computed = size in ('t0', 't2')
    with torch.device('cpu' if computed else 'meta'):
        theirs = timm.create_model(f'fasternet_{size}').eval()
    if computed:
        randomize_norms(theirs)
    state = theirs.state_dict()
    converted = from_official(state)
    cfg = dict(converted['meta']['backbone'])
    assert f'This is FasterNet-{size.upper()}: configs/ablations/fasternet_{size}_in1k.py\n' in describe(cfg)
    shipped = Config.fromfile(ROOT / f'configs/ablations/fasternet_{size}_in1k.py').model
    for name in ('embed_dim', 'depths', 'num_heads', 'act_cfg'):
        assert cfg['arch'][name] == shipped.backbone.arch[name], name
    assert cfg.pop('type') == 'PartialNet'
    with torch.device('cpu' if computed else 'meta'):
        backbone = PartialNet(**cfg).eval()
    own = {name[len('backbone.'):]: value for name, value in converted['state_dict'].items() if 'head' not in name}
    assert {name: value.shape for name, value in own.items()} == {
        name: value.shape for name, value in backbone.state_dict().items()}
    if not computed:
        return
    x = torch.randn(2, 3, 64, 96)
    for names in (own, state):  # the converted file, and timm's as it is
        backbone.load_state_dict({name: value for name, value in names.items()
                                  if not name.startswith(('conv_head', 'classifier'))}, strict=True)
        assert_close(backbone(x)[0], theirs.forward_features(x))
    back = to_official(converted, layout='timm')['state_dict']
    assert_same(back, state)
    # through the layout of FasterNet's own code
    with pytest.raises(ValueError, match="FasterNet's code block v1"):
        to_official(converted)
    fasternets = to_official(converted, stage4_block='v1')['state_dict']
    depths, activation = FASTERNETS[size][1:]
    assert_close(reference_network.forward(fasternets, x, depths, activation, FASTERNET)[-1], theirs(x))
    again = from_official(fasternets, 'v1')
    assert again['meta'] == converted['meta']
    assert_same(again['state_dict'], converted['state_dict'])


@torch.no_grad()
def test_a_classifier_of_timm_computes_the_same(randomize_norms):
    timm = pytest.importorskip('timm')
    pytest.importorskip('mmpretrain')
    theirs = randomize_norms(timm.create_model('fasternet_t0')).eval()
    cfg = Config.fromfile(ROOT / 'configs/ablations/fasternet_t0_in1k.py')
    cfg.model.train_cfg = None
    ours = build_model(cfg).eval()
    ours.load_state_dict(from_official(theirs.state_dict())['state_dict'], strict=True)
    x = torch.randn(2, 3, 64, 96)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize('arguments, message', [
    (dict(), 'has no names for .*token_mixer.gate.conv.weight'),
    (dict(token_mixers='partial_conv', spatial_attention='none', mixer_residual=V2), 'stage 4 have a residual'),
    (dict(token_mixers='pat_ch'), 'has no names for .*gate'),
], ids=['PartialNet', 'block v2', 'channel attention'])
def test_timm_has_fasternet_alone(arguments, message, tiny_arch):
    with pytest.raises(ValueError, match=message):
        to_official(PartialNet(tiny_arch, **arguments).state_dict(), layout='timm')


def test_names_are_those_of_a_mapping_written_apart(tiny_arch):
    state = official(tiny_arch, detection=True)
    expected = {f'backbone.{name}': value for name, value in reference_network.to_partialnet(state).items()}
    assert_same(from_official(state)['state_dict'], expected)


@pytest.mark.parametrize('detection', [False, True])
def test_round_trips_are_exact(detection, tiny_arch):
    state = official(tiny_arch, detection)
    ours = from_official(state)['state_dict']
    back = to_official(ours)['state_dict']
    # Entries of the position tables that no distance takes come back as zeros: as they start, for they get no gradient.
    unused = {name: torch.cat((torch.zeros_like(value[:, :40]), value[:, 40:]), 1)
              for name, value in state.items() if name.endswith('lookup_table_bias')}
    assert len(unused) == 1
    assert_same(back, {**state, **unused})
    again = from_official(back)['state_dict']
    assert_same(again, ours)
    assert_same(to_official(again)['state_dict'], back)


def test_results_are_copies_with_a_storage_of_their_own(tiny_arch):
    state = {name: nn.Parameter(v) if v.is_floating_point() else v for name, v in official(tiny_arch, False).items()}
    before = {name: value.detach().clone() for name, value in state.items()}
    ours = from_official(state)['state_dict']
    for converted in (ours, to_official(ours)['state_dict']):
        for name, value in converted.items():
            assert not value.requires_grad
            # a part of a larger storage would be saved with all of it
            assert len(value.untyped_storage()) == value.numel() * value.element_size(), name
            value.zero_()
    assert_same(state, before)


@pytest.mark.parametrize('container', ['state_dict', 'model', None])
@pytest.mark.parametrize('prefix', ['', 'model.', 'module.', 'backbone.', 'module.model.', 'model.module.backbone.'])
def test_prefixes_and_containers(prefix, container, tiny_arch):
    state = official(tiny_arch, detection=False)
    expected = from_official(state)
    wrapped = {prefix + name: value for name, value in state.items()}
    got = from_official({container: wrapped, 'epoch': 3} if container else wrapped)
    assert_same(got['state_dict'], expected['state_dict'])
    assert got['meta'] == expected['meta']


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_prefixes_of_this_layout(prefix, tiny_arch):
    state = official(tiny_arch, detection=False)
    ours = from_official(state)['state_dict']
    expected = to_official(ours)['state_dict']
    assert_same(to_official({prefix + name: value for name, value in ours.items()})['state_dict'], expected)
    backbone = {prefix + name[len('backbone.'):]: value for name, value in ours.items() if name.startswith('backbone.')}
    assert_same(to_official(backbone)['state_dict'],
                {name: value for name, value in expected.items() if 'head' not in name})


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_the_parts_of_a_detector_go_along(prefix, tiny_arch):
    parts = {'neck.fpn_convs.0.conv.weight': torch.ones(2), 'rpn_head.rpn_conv.bias': torch.ones(3),
             'roi_head.mask_head.conv_logits.weight': torch.ones(4)}
    backbone = {f'backbone.{name}': value for name, value in official(tiny_arch, detection=True).items()}
    ours = from_official({prefix + name: value for name, value in {**backbone, **parts}.items()})['state_dict']
    assert_same({name: ours[name] for name in parts}, parts)
    back = to_official({prefix + name: value for name, value in ours.items()})['state_dict']
    assert sorted(back) == sorted({**backbone, **parts})
    for name, value in {**backbone, **parts}.items():
        if not name.endswith('lookup_table_bias'):
            assert torch.equal(back[name], value)


@pytest.mark.parametrize('direction', ['from', 'to'])
@pytest.mark.parametrize('detection', [False, True])
def test_each_tensor_must_be_there_and_of_its_shape(direction, detection, tiny_arch):
    arch = dict(tiny_arch, depths=(1, 1, 1, 1))
    state, others, convert = official(arch, detection), official(arch, True), from_official
    if direction == 'to':
        state, others, convert = from_official(state)['state_dict'], from_official(others)['state_dict'], to_official
    names = sorted(state if detection else set(state) - set(others))
    for name, other in zip(names, names[-1:] + names):
        with pytest.raises(ValueError) as error:
            convert({**{kept: value for kept, value in state.items() if kept != name}, other: state[other][None]})
        message = str(error.value)
        start = 'backbone.' if direction == 'to' and name.startswith('backbone.') else ''
        assert name[len(start):] in message, name
        if 'downsample_layers.0.conv.weight' not in name and 'patch_embed.proj.weight' not in name:
            assert 'of another shape' in message
            assert f'{other.replace("backbone.", "")} is {(1, *state[other].shape)} and not ' in message, other


@pytest.mark.parametrize('change, message', [
    ({'patch_embed.proj.weight': torch.ones(1 << 15, 3, 4, 4),
      **{f'patch_embed.norm.{leaf}': torch.ones(1 << 15) for leaf in ('weight', 'bias', 'running_mean')}},
     'its stem has 32768 channels'),
    ({f'stages.0.blocks.{j}.mlp.0.weight': torch.ones(1) for j in range(101)}, 'stage 1 has 101 blocks'),
    ({'patch_embed.proj.weight': torch.ones(15, 3, 4, 4),
      **{f'patch_embed.norm.{leaf}': torch.ones(15) for leaf in ('weight', 'bias', 'running_mean')}},
     'no PartialNet in the official layout: .*embed_dim'),
], ids=['wide', 'deep', 'odd'])
def test_networks_that_cannot_be(change, message, tiny_arch):
    with pytest.raises(ValueError, match=message):
        from_official({**official(tiny_arch, False), **change})


@pytest.mark.parametrize('extra', [
    'stages.0.blocks.0.layer_scale', 'stages.0.blocks.7.mlp.0.weight', 'stages.0.blocks.00.mlp.0.weight',
    'stages.2.blocks.0.spatial_mixing.attn.qkv.weight', 'stages.1.norm.other', 'stages.7.reduction.weight',
    'norm1.weight', 'neck.convs.0.weight', 'criterion.weight', 'stages.6.blocks.0.spatial_mixing.norm.running_mean',
    'stages.4.blocks.0.mlp.0.bias',
])
def test_what_is_unknown_is_refused_by_name(extra, tiny_arch):
    with pytest.raises(ValueError, match='missing|unknown') as error:
        from_official({**official(tiny_arch, False), extra: torch.ones(2)})
    assert extra in str(error.value)


@pytest.mark.parametrize('arguments', [dict(deploy=True), dict(layer_scale_init_value=0.1), dict(gate='se'),
                                       dict(gate='srm'), dict(token_mixers='conv'), dict(token_mixers='full_ch'),
                                       dict(spatial_attention='full'), dict(norm_cfg=dict(type='GN', num_groups=1))],
                         ids=str)
def test_what_has_no_place_in_the_official_layout_is_refused(arguments, tiny_arch):
    with pytest.raises(ValueError, match=r'no PartialNet in this project.s layout.*Merged \(deploy\) forms'):
        to_official(PartialNet(tiny_arch, **arguments).state_dict())


def test_searched_split_ratios(tiny_arch, randomize_norms):
    ratios = (0.5, 0.25, 0.125, 0.5, 0.25)
    model = randomize_norms(PartialNet(tiny_arch, split_ratio=ratios))
    state = to_official(model.state_dict())
    assert state['meta']['backbone']['split_ratio'] == list(ratios)
    assert_same({name[len('backbone.'):]: value for name, value in from_official(state)['state_dict'].items()},
                model.state_dict())


def test_split_ratios_that_rounding_would_change(tiny_arch):
    """15 / 44 of 44 channels are 14, rounded down in floating point."""
    arch = dict(tiny_arch, embed_dim=44)
    model = PartialNet(arch, split_ratio=15.5 / 44, token_mixers='partial_conv')
    assert model.stages[0][0].token_mixer.split_sizes == (15, 29) and int(44 * (15 / 44)) == 14
    cfg = dict(to_official(model.state_dict(), stage4_block='v1')['meta']['backbone'], arch=arch)
    assert cfg.pop('type') == 'PartialNet'
    PartialNet(**cfg).load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize('norms', [(1, 2, 3), (3, )])
def test_norms_of_some_maps(norms, tiny_arch):
    state = {name: value for name, value in official(tiny_arch, True).items()
             if not name.startswith('norm') or int(name[4]) // 2 in norms}
    converted = from_official(state)
    cfg = dict(converted['meta']['backbone'], arch=tiny_arch)
    assert cfg.pop('type') == 'PartialNet' and cfg.get('out_indices', (3, )) == norms
    nn.ModuleDict(dict(backbone=PartialNet(**cfg))).load_state_dict(converted['state_dict'], strict=True)


@pytest.mark.parametrize('arch', PartialNet.arch_settings)
def test_meta_names_the_variant(arch):
    model = PartialNet(arch, in_channels=5).to('meta')  # names and shapes alone
    assert to_official(model.state_dict())['meta']['backbone'] == dict(type='PartialNet', arch=arch, in_channels=5)


@pytest.mark.parametrize('arch, heads, spatial, expected', [
    ('t0-appendix', 4, False, "PartialNet(arch='t0-appendix', spatial_attention='none')\nOn a command line: "
     '--cfg-options model.backbone.arch=t0-appendix model.backbone.spatial_attention=none'),
    ('t1-appendix', 4, True, "PartialNet(arch='t1-appendix', num_heads=4)\nOn a command line: --cfg-options "
     'model.backbone.arch=t1-appendix model.backbone.num_heads=4'),
    ('t1', 6, True, "PartialNet(arch='t1')"),
])
def test_what_is_printed_builds_the_network(arch, heads, spatial, expected):
    """Both of the files that the author has published, as the official config files of that time describe them."""
    settings = PartialNet.arch_settings[arch]
    state = reference_network.random_state(settings['embed_dim'], settings['depths'], heads, False,
                                           with_spatial=spatial)
    converted = from_official(state)
    cfg = converted['meta']['backbone']
    assert describe(cfg) == expected
    model = PartialNet(**{name: value for name, value in cfg.items() if name != 'type'})
    model.load_state_dict({name[len('backbone.'):]: value for name, value in converted['state_dict'].items()
                           if name.startswith('backbone.')}, strict=True)


@pytest.mark.parametrize('backbone', [
    dict(arch='t1-appendix', num_heads=4, out_indices=(0, 1, 2, 3)),
    dict(arch='t2', token_mixers=('partial_conv', ) * 4, mixer_residual=V2, spatial_attention='none'),
    dict(arch=dict(embed_dim=40, depths=(1, 2, 8, 2), num_heads=1, act_cfg=dict(type='GELU')), split_ratio=0.125),
], ids=str)
def test_options_of_a_command_line_give_the_arguments(backbone):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = shlex.split(command_line_options(dict(backbone, type='PartialNet')))
    cfg = Config(dict(model=dict(backbone=dict(type='PartialNet', arch='t0', out_indices=(0, 1, 2, 3)))))
    cfg.merge_from_dict(parser.parse_args(['--cfg-options', *options]).cfg_options)
    assert cfg.model.backbone.to_dict() == dict(dict(type='PartialNet', out_indices=(0, 1, 2, 3)), **backbone)


def test_a_bias_that_the_official_head_lacks(tiny_arch):
    ours = from_official(official(tiny_arch, False))['state_dict']
    assert (ours['head.layers.0.fc.bias'] == 0).all()
    ours['head.layers.0.fc.bias'][5] = -0.25
    with pytest.raises(ValueError, match=r'head\.layers\.0\.fc\.bias is up to 0\.25: .*no such bias\. .*--head-bias'):
        to_official(ours)
    state = to_official(ours, head_bias=True)['state_dict']
    assert torch.equal(state['avgpool_pre_head.1.bias'], ours['head.layers.0.fc.bias'])
    assert_same(from_official(state)['state_dict'], ours)


@pytest.mark.parametrize('content, message', [
    (dict(), 'it has no patch_embed.proj.weight, its tensors begin with nothing'),
    (dict(state_dict=[1]), 'holds a list instead of its state dict'),
    (dict(a=torch.ones(1), b=3), r'not tensors \(1\): b is a int'),
    ({'conv1.weight': torch.ones(1)}, 'not in the official layout; it has no .*begin with conv1.weight'),
    ({'downsample_layers.0.conv.weight': torch.ones(1)}, "official layout: it is in this project's layout"),
    ({'student.patch_embed.proj.weight': torch.ones(1)}, r'student\.patch_embed.*prefixes model\., module\., backbone'),
    ({f'{name}.patch_embed.proj.weight': torch.ones(1) for name in ('model', 'module')},
     r'model\.patch_embed.*, module\.patch_embed.*: one network is needed'),
    ({'patch_embed.proj.weight': torch.ones(16, 3, 4, 4)}, 'stage 1 has no block'),
], ids=str)
def test_what_is_no_checkpoint_of_it(content, message):
    with pytest.raises(ValueError, match=message):
        from_official(content)


def test_the_official_layout_is_not_this_one(tiny_arch):
    with pytest.raises(ValueError, match="not in this project's layout: it is in the official layout"):
        to_official(official(tiny_arch, False))
