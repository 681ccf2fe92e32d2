# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What the one reader of checkpoints takes as data, and what it refuses without running or reserving anything."""
import os
import re
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.optim import OneCycleLR
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from partialnet_mm.checkpoint import Reference, read_checkpoint
from partialnet_mm.checkpoint.pretrained import find_state_dict
from tests.helpers import hostile_checkpoints as hostile

#: What is said of some kinds of files; of all, that they cannot be read.
MESSAGES = {
    'os.system': 'it asks for posix.system, and posix.system is not data',
    'os.system, legacy format': 'it is neither a safetensors file nor a zip archive of torch.save',
    'globals of a method': 'hostile_checkpoints.Own.__init__.__globals__ is not data',
    'getattr of a dict': 'builtins.getattr is not data',
    'object of a class': 'hostile_checkpoints.Own is not data',
    'ndarray over a buffer': 'numpy.ndarray is not data',
    'TorchScript': 'it is a TorchScript archive, which is a program',
    'deflated members': 'members of its archive are compressed',
    'large directory': 'the directory of its archive is larger than 4 MiB',
    'one view many times': 'it is small and would become more than',
    'deep tuples': 'beside its tensors, it holds data of more than 160 MiB',
    'deep lists by the memo': 'containers lie in each other more than 100 deep',
    'keys of one hash': 'a key is a int; allowed are texts, and integers below 2.60',
    'cycle': 'a container contains itself',
    'pipe': 'it is a pipe, a device or a socket',
    'folder': 'it is a folder',
    'tensor over a short record': "storage '0' has 16 bytes and not 1048576 values",
    'size beyond the storage': 'a tensor reaches out of its storage',
    'array larger than its content': 'an array of 1073741824 values has 16 bytes',
    'half': 'it is truncated or damaged',
    'bit flipped in a tensor': 'it is truncated or damaged .*CRC',
    'list': 'it is a list; a dict is needed',
    'meta that is no dict': 'its meta has the wrong type, list; a dict is needed',
    'data that is no dict': 'its meta.dataset_meta has the wrong type, str; a dict is needed',
    'numbers in another order': 'of another kind of processor',
    'tensor names to control a terminal': re.escape(r"a tensor by the name '\x1b[2J\n'"),
    'safetensors, header of 2^63 bytes': 'its header is of 9223372036854775808 bytes',
}
#: Data that nobody asked for, but data.
HARMLESS = ('many integers', 'many entries of the memo', 'many names')


@pytest.mark.parametrize('kind', [kind for kind in hostile.KINDS if kind not in HARMLESS])
def test_hostile_and_damaged_files(kind, tmp_path):
    path, canary = tmp_path / 'c.pth', tmp_path / 'canary'
    hostile.KINDS[kind](path, canary)
    before = time.process_time()
    with pytest.raises(ValueError) as error:
        find_state_dict(read_checkpoint(path))
    assert time.process_time() - before < 10
    assert not canary.exists() and os.listdir(tmp_path) == ['c.pth']
    message = str(error.value)
    assert re.search(MESSAGES.get(kind, ''), message)
    assert len(message) < 700 + len(str(path)) and message.isprintable()


def test_the_trap_is_real(tmp_path):
    canary = tmp_path / 'canary'
    hostile.KINDS['os.system'](tmp_path / 'c.pth', canary)
    with pytest.raises(ValueError):
        read_checkpoint(tmp_path / 'c.pth')
    assert not canary.exists()
    read_checkpoint(tmp_path / 'c.pth', trust=True)
    assert canary.exists()


@pytest.mark.parametrize('forced', ['0', '1'])
@pytest.mark.parametrize('trust', [False, True])
def test_plain_data(trust, forced, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', forced)
    content = dict(
        state_dict=OrderedDict(a=torch.randn(2, 3), half=torch.ones(2, dtype=torch.bfloat16),
                               count=torch.tensor(3), mask=torch.tensor([True]), p=nn.Parameter(torch.ones(2)),
                               turned=torch.arange(6.).view(2, 3).t(), empty=torch.ones(0, 3),
                               complex=torch.ones(2, dtype=torch.complex64)),
        sizes=torch.Size([1, 2]), dtype=torch.float16, number=1.5, text='ü', nothing=None, large=1 << 100, minus=-5,
        raw=b'\x00\xff', no_bytes=b'', group={1, 2}, frozen=frozenset('a'), counter=Counter('aab'),
        array=np.arange(6.).reshape(2, 3), turned=np.asfortranarray(np.arange(6).reshape(2, 3)), ints=np.arange(3),
        big_endian=np.arange(3, dtype='>f4'), nested=[({'x': (1, [2])}, )], keys={1: 'a', None: 'b', False: 'c'})
    torch.save(content, tmp_path / 'c.pth')
    read = read_checkpoint(tmp_path / 'c.pth', trust)
    assert list(read) == list(content)
    for name, value in content['state_dict'].items():
        assert torch.equal(read['state_dict'][name], value), name
        assert read['state_dict'][name].dtype == value.dtype and read['state_dict'][name].stride() == value.stride()
        assert read['state_dict'][name].requires_grad == value.requires_grad
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            assert np.array_equal(read[name], value), name
            assert read[name].dtype == value.dtype.newbyteorder('=')
        elif name != 'state_dict':
            assert read[name] == value, name
            assert type(read[name]) is type(value), name


def test_what_becomes_plainer(tmp_path):
    content = dict(scalar=np.float64(2.5), flag=np.bool_(True), default=defaultdict(list, a=[1]), function=os.getcwd,
                   own=hostile.Own, method=OneCycleLR._annealing_cos)
    torch.save(content, tmp_path / 'c.pth')
    read = read_checkpoint(tmp_path / 'c.pth')
    assert (read['scalar'], read['flag'], read['default']) == (2.5, True, dict(a=[1]))
    assert [type(read[name]) for name in ('scalar', 'flag', 'default')] == [float, bool, dict]
    for name in ('function', 'own', 'method'):  # names, which nobody can call
        assert type(read[name]) is Reference and not callable(read[name])
    assert read['function'] == 'posix.getcwd'
    assert read['method'].endswith('OneCycleParamScheduler._annealing_cos')


def test_versions_of_modules_stay(tmp_path):
    state = nn.BatchNorm2d(2).state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'c.pth')
    assert read_checkpoint(tmp_path / 'c.pth')['state_dict']._metadata == state._metadata == {'': dict(version=2)}


def test_views_share_their_storage(tmp_path):
    whole = torch.arange(6.)
    torch.save(dict(whole=whole, part=whole[2:4]), tmp_path / 'c.pth')
    read = read_checkpoint(tmp_path / 'c.pth')
    read['whole'][2] = 9
    assert read['part'].tolist() == [9, 3]


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_checkpoint(tmp_path / 'missing.pth')
    assert str(error.value) == f'checkpoint {str(tmp_path / "missing.pth")!r} does not exist'


def test_links_are_followed(tmp_path):
    torch.save(dict(a=1), tmp_path / 'c.pth')
    (tmp_path / 'link.pth').symlink_to('c.pth')
    assert read_checkpoint(tmp_path / 'link.pth') == dict(a=1)


def rename_module(path, old, new):
    """Makes the file refer to another module, as one written beside another version of numpy does."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data, = (name for name in parts if name.endswith('data.pkl'))
    assert old in parts[data]
    parts[data] = parts[data].replace(old, new)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, value in parts.items():
            archive.writestr(name, value)


def test_arrays_of_either_numpy(tmp_path):
    content = dict(array=np.arange(3.), scalar=np.float64(1.5), buffer=HistoryBuffer([1., 2.], [1, 1]))
    torch.save(content, tmp_path / 'c.pth')
    names = [b'cnumpy.core.multiarray\n', b'cnumpy._core.multiarray\n']
    own = np.zeros(1).__reduce__()[0].__module__
    other = names[0] if own == 'numpy._core.multiarray' else names[1]
    rename_module(tmp_path / 'c.pth', f'c{own}\n'.encode(), other)
    read = read_checkpoint(tmp_path / 'c.pth')
    assert read['array'].tolist() == [0, 1, 2]
    assert read['scalar'] == 1.5
    assert read['buffer'].mean() == 1.5


def test_log_buffers_bring_numbers_and_no_methods(tmp_path):
    buffer = HistoryBuffer([1., 2., 6.], [1, 1, 2], max_length=10)
    methods = dict(HistoryBuffer._statistics_methods)
    # What a forged file would enter into the class.
    buffer.__dict__['_statistics_methods'] = dict(methods, mean=os.abort, forged=os.abort)
    torch.save(dict(buffer=buffer), tmp_path / 'c.pth')
    read = read_checkpoint(tmp_path / 'c.pth')['buffer']
    assert type(read) is HistoryBuffer
    assert [part.tolist() for part in read.data] == [[1, 2, 6], [1, 1, 2]]
    assert read.max_length == 10
    assert read.statistics('mean') == 2.25
    read.update(3.)
    assert read.current() == 3
    assert HistoryBuffer._statistics_methods == methods


class Toy(BaseModel):
    """A network of one layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.linear(inputs).square().mean())


class ArrayMessage(Hook):
    """Adds an array to the runner's messages, as a hook may."""

    def before_train(self, runner):
        runner.message_hub.update_info('array', np.arange(3))


@pytest.mark.parametrize('schedule', [
    dict(type='MultiStepLR', milestones=[1]), dict(type='OneCycleLR', eta_max=0.1, total_steps=4, by_epoch=False),
    dict(type='CosineAnnealingLR', T_max=2)
], ids=lambda schedule: schedule['type'])
def test_checkpoint_of_a_runner(schedule, tmp_path):
    data = DataLoader([torch.ones(2), torch.zeros(2)], collate_fn=lambda batch: dict(inputs=torch.stack(batch)))
    runner = Runner(
        Toy(), str(tmp_path), train_dataloader=data, train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)), param_scheduler=schedule,
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2),
                           logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[ArrayMessage()], experiment_name=tmp_path.name, log_level='ERROR', randomness=dict(seed=1))
    runner.train()
    checkpoint = read_checkpoint(tmp_path / 'epoch_2.pth')
    for name, value in runner.model.state_dict().items():
        assert torch.equal(checkpoint['state_dict'][name], value)
    assert (checkpoint['meta']['epoch'], checkpoint['meta']['iter']) == (2, 4)
    messages = checkpoint['message_hub']
    losses = messages['log_scalars']['train/loss']
    assert type(losses) is HistoryBuffer
    assert np.array_equal(losses.data[0], runner.message_hub.get_scalar('train/loss').data[0])
    assert messages['runtime_info']['array'].tolist() == [0, 1, 2]
    assert set(checkpoint['optimizer']['state'][0]) == {'step', 'exp_avg', 'exp_avg_sq'}
    assert checkpoint['param_schedulers'][0]['last_step'] == runner.param_schedulers[0].last_step
