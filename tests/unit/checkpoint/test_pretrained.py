# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import functools
import hashlib
import http.server
import logging
import os
import threading

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from partialnet_mm.checkpoint.pretrained import load_pretrained, pretrained_cfg
from partialnet_mm.models import PartialNet
from tests.helpers.reference_network import FASTERNET_TYPES, OFFICIAL_TYPES, forward, random_state


@pytest.fixture
def log(monkeypatch):
    """What is logged from level INFO up: level and text."""
    lines = []

    def note(level, text):
        if level >= logging.INFO:
            lines.append((level, text))

    monkeypatch.setattr(MMLogger.get_current_instance(), 'log', note)
    return lines


@pytest.fixture
def trained(tiny_arch, randomize_norms):
    """A backbone with weights that no initialization gives."""
    return randomize_norms(PartialNet(tiny_arch))


def write(tensors, path, key='state_dict', prefix='backbone.', **others):
    renamed = {prefix + name: value for name, value in tensors.items()}
    renamed.update(others)
    torch.save({key: renamed, 'meta': {}} if key else renamed, path)
    return str(path)


@pytest.mark.parametrize('init_cfg, expected', [
    (None, None),
    (dict(type='Constant', layer='Conv2d', val=1), None),
    ([dict(type='Constant', layer='Conv2d', val=1), dict(type='Normal', layer='Linear')], None), ([], None),
    (dict(type='Pretrained', checkpoint='a.pth'), dict(checkpoint='a.pth')),
    ([dict(type='Pretrained', checkpoint='a.pth', prefix='backbone.')], dict(checkpoint='a.pth', prefix='backbone.')),
    (dict(type='Pretrained', checkpoint='a.pth', map_location='cuda'), dict(checkpoint='a.pth')),
])
def test_pretrained_cfg(init_cfg, expected):
    assert pretrained_cfg(init_cfg) == expected


@pytest.mark.parametrize('init_cfg', [
    dict(type='Pretrained'), dict(type='Pretrained', checkpoint=''), dict(type='Pretrained', checkpoint=None),
    dict(type='Pretrained', checkpoint='a.pth', perfix='backbone.'),
], ids=str)
def test_pretrained_cfg_refuses(init_cfg):
    with pytest.raises(ValueError) as error:
        pretrained_cfg(init_cfg)
    assert str(error.value) == ("init_cfg of type 'Pretrained' takes checkpoint, which is needed, prefix and "
                                f'map_location; got {init_cfg!r}')


def test_a_checkpoint_among_other_initializations_is_refused():
    init_cfg = [dict(type='Constant', layer='Conv2d', val=1), dict(type='Pretrained', checkpoint='a')]
    with pytest.raises(ValueError, match="of type 'Pretrained' must be the only one"):
        pretrained_cfg(init_cfg)


@pytest.mark.parametrize('init_cfg', ['Pretrained', ["{'type':'Pretrained'", "'checkpoint':'a.pth'}"], 5], ids=str)
def test_an_init_cfg_that_is_no_dict_is_refused(init_cfg, tiny_arch):
    with pytest.raises(TypeError, match='init_cfg must be a dict.*init_cfg.checkpoint=FILE') as error:
        PartialNet(tiny_arch, init_cfg=init_cfg)
    assert repr(init_cfg) in str(error.value)


@pytest.mark.parametrize('key', ['state_dict', 'model', None])
@pytest.mark.parametrize('prefix', ['backbone.', 'module.net.', ''])
def test_every_tensor_arrives(key, prefix, trained, tiny_arch, tmp_path, log):
    path = write(trained.state_dict(), tmp_path / 'c.pth', key, prefix, **{'head.fc.weight': torch.ones(3)})
    model = PartialNet(tiny_arch)
    report = load_pretrained(model, path, prefix)
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    total = len(trained.state_dict())
    unexpected = [] if prefix else ['head.fc.weight']
    assert report == dict(loaded=list(trained.state_dict()), missing=[], unexpected=unexpected, mismatched=[])
    summary = f'{total} of {total} tensors of PartialNet loaded from {path!r} (prefix {prefix!r})'
    # what is left out of the backbone is a warning, the head is none
    left_out = 'in the file, but not under the prefix' if prefix else 'unexpected'
    assert log == [(logging.INFO if prefix else logging.WARNING, f'{summary}\n  {left_out} (1): head.fc.weight')]


def test_no_prefix_is_the_same_as_an_empty_one(trained, tiny_arch, tmp_path):
    path = write(trained.state_dict(), tmp_path / 'c.pth', prefix='')
    assert load_pretrained(PartialNet(tiny_arch), path) == load_pretrained(PartialNet(tiny_arch), path, '')


def linears(count, width=2):
    """``count`` tensors, each a layer of its own."""
    return nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(count)])


@pytest.mark.parametrize('present, enough', [(20, True), (19, True), (18, True), (17, False), (0, False)])
def test_at_least_nine_tenths_must_arrive(present, enough, tmp_path, log):
    source, model = linears(20), linears(20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = list(before)
    path = write({name: source.state_dict()[name] for name in names[:present]}, tmp_path / 'c.pth')
    if not enough:
        with pytest.raises(ValueError) as error:
            load_pretrained(model, path, 'backbone.')
        message = str(error.value)
        assert message.startswith(f'only {present} of 20 tensors of ModuleList loaded from {path!r} '
                                  f"(prefix 'backbone.')\n  missing ({20 - present}): {names[present]}")
        assert 'at least 90% must match on either side: the checkpoint belongs to another network or arch, is merged ' \
               'where deploy=False or the reverse, or needs another prefix' in message
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert log == []
        return
    report = load_pretrained(model, path, 'backbone.')
    assert report['loaded'] == names[:present]
    assert report['missing'] == names[present:]
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name] if name in names[:present] else before[name])
    (level, text), = log
    assert ('missing' in text) == (level == logging.WARNING) == (present < 20)


def test_mismatched_shapes_do_not_count(tmp_path, log):
    source, model = linears(20), linears(20)
    state = source.state_dict()
    state['3.weight'] = torch.ones(5, 2)
    state['4.weight'] = torch.ones(2)
    report = load_pretrained(model, write(state, tmp_path / 'c.pth'), 'backbone.')
    assert report['mismatched'] == ['3.weight', '4.weight']
    assert len(report['loaded']) == 18
    (level, text), = log
    assert level == logging.WARNING and '18 of 20' in text
    assert 'mismatched (2): 3.weight, 4.weight' in text
    state['5.weight'] = torch.ones(1)
    with pytest.raises(ValueError, match=r'(?s)only 17 of 20 .*mismatched \(3\): 3\.weight, 4\.weight, 5\.weight'):
        load_pretrained(model, write(state, tmp_path / 'c.pth'), 'backbone.')


@pytest.mark.parametrize('beyond, enough', [(2, True), (3, False)])
def test_a_larger_network_does_not_fit(beyond, enough, tmp_path, log):
    model, path = linears(20), write(linears(20 + beyond).state_dict(), tmp_path / 'c.pth')
    if enough:
        assert len(load_pretrained(model, path, 'backbone.')['unexpected']) == beyond
        assert log[0][0] == logging.WARNING
    else:
        with pytest.raises(ValueError, match=r'(?s)unexpected \(3\): 20\.weight.*belongs to another network or arch'):
            load_pretrained(model, path, 'backbone.')


def test_wrong_prefix_names_what_the_file_has(trained, tiny_arch, tmp_path):
    path = write(trained.state_dict(), tmp_path / 'c.pth')
    total = len(trained.state_dict())
    with pytest.raises(ValueError) as error:
        load_pretrained(PartialNet(tiny_arch), path, 'net.')
    assert f"only 0 of {total} tensors of PartialNet loaded from {path!r} (prefix 'net.')" in str(error.value)
    assert f'missing ({total}): ' in str(error.value)
    assert f'... {total - 12} more' in str(error.value)
    assert 'Its tensors begin with backbone.downsample_layers.0.conv.weight, ' in str(error.value)


def test_another_arch_is_refused(trained, tmp_path):
    path = write(trained.state_dict(), tmp_path / 'c.pth')
    with pytest.raises(ValueError, match='another network or arch'):
        load_pretrained(PartialNet('t0'), path, 'backbone.')


def official_file(path, arch, prefix='model.', **changes):
    """A classifier of the official code, and its state dict."""
    state = random_state(arch['embed_dim'], arch['depths'], arch['num_heads'], False, **changes)
    return write(state, path, prefix=prefix), state


@torch.no_grad()
def test_a_checkpoint_of_the_official_code_is_read_as_it_is(tiny_arch, tmp_path, log):
    path, state = official_file(tmp_path / 'c.pth', tiny_arch)
    model = PartialNet(tiny_arch, out_indices=(0, 1, 2, 3)).eval()
    assert load_pretrained(model, path, 'backbone.')['mismatched'] == []
    (level, text), = log
    assert level == logging.INFO and f'loaded from {path!r} (in the official layout)' in text
    model = PartialNet(tiny_arch).eval()
    load_pretrained(model, path)
    x = torch.randn(1, 3, 64, 64)
    expected = forward(state, x, tiny_arch['depths'], 'ReLU')[3]
    assert (model(x)[0] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize('change, arguments, message', [
    (dict(num_heads=4), dict(), 'num_heads 4 and not 2'),
    (dict(), dict(num_heads=1), 'num_heads 2 and not 1'),
    (dict(depths=(1, 1, 3, 1)), dict(), r'depths \(1, 1, 3, 1\) and not \(1, 1, 2, 1\)'),
    (dict(embed_dim=24), dict(), 'embed_dim 24 and not 16'),
    (dict(), dict(spatial_attention='none'), 'spatial attention True and not False'),
    (dict(), dict(token_mixers='pat_ch'), "'self'.* and not .*'channel'"),
], ids=str)
def test_a_checkpoint_of_another_structure_is_refused(change, arguments, message, tiny_arch, tmp_path):
    path, state = official_file(tmp_path / 'c.pth', dict(tiny_arch, **change))
    model = PartialNet(tiny_arch, **arguments)
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, path, 'backbone.')
    with pytest.raises(ValueError, match=f'the checkpoint is of another PartialNet: .*{message}'):
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize('load', ['init_cfg', 'load_state_dict', 'mmengine'])
def test_weights_of_other_heads_do_not_load_with_a_warning(load, tmp_path):
    """The official config files set 4 heads for all variants: two tensors of T1 have another shape, of 417."""
    model, state = PartialNet('t1-appendix'), PartialNet('t1-appendix', num_heads=4).state_dict()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match='num_heads 4 and not 6'):
        if load == 'init_cfg':
            load_pretrained(model, write(state, tmp_path / 'c.pth'), 'backbone.')
        elif load == 'load_state_dict':
            model.load_state_dict(state, strict=False)
        else:
            load_checkpoint(nn.ModuleDict(dict(backbone=model)), write(state, tmp_path / 'c.pth'))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_depth_does_not_load_with_a_warning(tiny_arch, tmp_path):
    deep = dict(tiny_arch, depths=(1, 1, 20, 1))
    path = write(PartialNet(deep).state_dict(), tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=r'is of another PartialNet: it has depths \(1, 1, 20, 1\) and not'):
        load_pretrained(PartialNet(dict(deep, depths=(1, 1, 19, 1))), path, 'backbone.')


@pytest.mark.parametrize('residual, types', [((False, False, False, True), OFFICIAL_TYPES), (False, FASTERNET_TYPES)])
@torch.no_grad()
def test_a_file_that_hides_its_blocks_needs_a_network_that_states_them(residual, types, tiny_arch, tmp_path):
    path, state = official_file(tmp_path / 'c.pth', tiny_arch, attentions=['none'] * 4)
    arguments = dict(arch=tiny_arch, token_mixers='partial_conv')
    with pytest.raises(ValueError, match=r'No tensor shows the block of its stage 4.*mixer_residual=\(False, False, '):
        load_pretrained(PartialNet(**arguments), path)
    model, x = PartialNet(**arguments, mixer_residual=residual).eval(), torch.randn(1, 3, 64, 64)
    load_pretrained(model, path)
    expected = forward(state, x, tiny_arch['depths'], 'ReLU', types)[3]
    assert (model(x)[0] - expected).abs().max() < 1e-4 * expected.abs().max()
    # this project's own files show their blocks
    other = PartialNet(**arguments, mixer_residual=(False, False, False, not residual))
    with pytest.raises(ValueError, match=r'residual around the token mixers of stage 4 \(mixer_residual\)'):
        load_pretrained(other, write(model.state_dict(), tmp_path / 'own.pth'), 'backbone.')
    with pytest.raises(ValueError, match=r'residual around the token mixers of stage 4 \(mixer_residual\)'):
        other.load_state_dict(model.state_dict(), strict=False)


def test_several_networks_in_one_file_are_refused(tiny_arch, tmp_path):
    path, _ = official_file(tmp_path / 'c.pth', tiny_arch, prefix='teacher.')
    with pytest.raises(ValueError, match=r"checkpoint '.*' holds teacher\.patch_embed.*: one network is needed"):
        load_pretrained(PartialNet(tiny_arch), path)


@pytest.mark.parametrize('change', ['none', 'rename', 'flip', 'date'])
def test_a_hash_in_the_name_is_checked(change, trained, tiny_arch, tmp_path):
    path = tmp_path / 'c.pth'
    for seed in range(99):  # until the hash has a letter, as 98 of 100 have
        write(trained.state_dict(), path, seed=seed)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        if not digest.isdigit():
            break
    if change == 'flip':  # torch.load would not notice: it does not look at the checksums
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    named = path.rename(tmp_path / f'net-{dict(rename="0123abcd", date="20240131").get(change, digest)}.pth')
    model = PartialNet(tiny_arch)
    if change in ('none', 'date'):
        assert load_pretrained(model, str(named), 'backbone.')['missing'] == []
        return
    found = hashlib.sha256(named.read_bytes()).hexdigest()[:8]
    with pytest.raises(ValueError, match=f"'{named.name}' is damaged, .* SHA-256 begins with {found}, not with "
                                         f'{named.stem[-8:]}'):
        load_pretrained(model, str(named), 'backbone.')


def test_missing_file(tiny_arch, tmp_path):
    path = str(tmp_path / 'missing.pth')
    with pytest.raises(FileNotFoundError) as error:
        load_pretrained(PartialNet(tiny_arch), path)
    for fragment in (f'init_cfg.checkpoint {path!r} does not exist', 'configs/pretrain',
                     'model.backbone.init_cfg.checkpoint=FILE', 'configs/mask_rcnn/partialnet_t0_scratch.py'):
        assert fragment in str(error.value)


def test_damaged_file(tiny_arch, tmp_path):
    path = tmp_path / 'damaged.pth'
    path.write_bytes(b'PK\x03\x04')
    with pytest.raises(ValueError, match='cannot be read: it is .*truncated'):
        load_pretrained(PartialNet(tiny_arch), str(path))


@pytest.mark.parametrize('content, message', [
    (dict(state_dict=[1]), 'holds a list instead of its state dict; allowed are tensors by name under'),
    (dict(model='s'), 'holds a str instead of its state dict'),
    (dict(meta=dict()), r'only 0 of \d+ tensors of PartialNet'),
    (dict(state_dict=dict()), r'only 0 of \d+ tensors of PartialNet'),
], ids=str)
def test_a_file_without_tensors(content, message, tiny_arch, tmp_path):
    path = str(tmp_path / 'c.pth')
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_pretrained(PartialNet(tiny_arch), path)


@pytest.fixture
def served(tmp_path):
    """A folder that a web server on this machine shows, and its address."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_an_address_is_fetched(trained, tiny_arch, served):
    folder, address = served
    write(trained.state_dict(), folder / 'c.pth')
    model = PartialNet(tiny_arch)
    load_pretrained(model, f'{address}/c.pth', 'backbone.')
    assert torch.equal(model.stages[0][0].mlp.conv1.weight, trained.stages[0][0].mlp.conv1.weight)


def test_what_an_address_holds_is_read_as_data(tiny_arch, served):
    folder, address = served

    class Malicious:

        def __reduce__(self):
            return os.mkdir, (str(folder / 'ran'), )

    torch.save(dict(state_dict=Malicious()), folder / 'c.pth')
    with pytest.raises(ValueError, match='mkdir'):
        load_pretrained(PartialNet(tiny_arch), f'{address}/c.pth')
    assert not (folder / 'ran').exists()


def test_init_weights_loads_over_the_initialization(tmp_path, randomize_norms):
    trained = randomize_norms(PartialNet('t0'))
    path = write(trained.state_dict(), tmp_path / 'c.pth')
    model = MODELS.build(dict(type='PartialNet', arch='t0', out_indices=(0, 1, 2, 3), init_cfg=dict(
        type='Pretrained', checkpoint=path, prefix='backbone.')))
    stem = model.downsample_layers[0].conv.weight.clone()
    assert not torch.equal(stem, trained.downsample_layers[0].conv.weight)  # nothing is read while building
    nn.init.constant_(model.norm0.weight, 5)
    model.init_weights()
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    # A classifier has no norms of returned maps: they start afresh.
    assert (model.norm0.weight == 1).all()


def test_norms_of_returned_maps_do_not_count(trained, tiny_arch, tmp_path, log):
    """Of a small arch they are more than a tenth, and a classifier has none."""
    model = PartialNet(tiny_arch, out_indices=(0, 1, 2, 3))
    report = load_pretrained(model, write(trained.state_dict(), tmp_path / 'c.pth'), 'backbone.')
    assert len(report['missing']) > 0.1 * len(model.state_dict())
    assert {name.split('.')[0] for name in report['missing']} == {'norm0', 'norm1', 'norm2', 'norm3'}
    (level, text), = log
    total = len(model.state_dict())
    assert text.startswith(f'{total - 20} of {total} tensors of PartialNet loaded from ')
    assert level == logging.INFO and text.endswith(
        '\n  norms of returned feature maps, which a classifier does not have; they start afresh (20): '
        + ', '.join(report['missing'][:12]) + ', ... 8 more')


def test_init_weights_of_a_frozen_backbone_loads_too(trained, tiny_arch, tmp_path):
    path = write(trained.state_dict(), tmp_path / 'c.pth')
    model = PartialNet(tiny_arch, frozen_stages=4, init_cfg=dict(type='Pretrained', checkpoint=path,
                                                                 prefix='backbone.'))
    model.init_weights()
    assert torch.equal(model.stages[3][0].mlp.conv1.weight, trained.stages[3][0].mlp.conv1.weight)
    assert not any(p.requires_grad for p in model.parameters())


def test_init_weights_raises_for_a_missing_file(tiny_arch, tmp_path):
    model = PartialNet(tiny_arch, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'missing.pth')))
    with pytest.raises(FileNotFoundError, match='does not exist'):
        model.init_weights()


def test_summary_is_logged_at_info(trained, tiny_arch, tmp_path, monkeypatch):
    model, path = PartialNet(tiny_arch), write(trained.state_dict(), tmp_path / 'c.pth')
    records = []
    # A logger of its own, whose level no test before has changed.
    monkeypatch.setattr(MMLogger.get_instance(tmp_path.name, log_level='INFO'), 'handle', records.append)
    load_pretrained(model, path, 'backbone.')
    (record, ) = (r for r in records if 'tensors of PartialNet loaded from' in r.getMessage())
    assert record.levelno == logging.INFO


@pytest.mark.parametrize('mixers', ['partial_conv', 'pat_ch'])
def test_a_search_is_called_that(mixers, tiny_arch, tmp_path):
    path = write(PartialNet(tiny_arch, token_mixers='dpconv').state_dict(), tmp_path / 'search.pth')
    with pytest.raises(ValueError, match=r'of a search for split ratios, .*dpconv_to_fixed\.py'):
        load_pretrained(PartialNet(tiny_arch, token_mixers=mixers), path, 'backbone.')
