# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
import os
import pickle
import warnings
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

from partialnet_mm.checkpoint.reader import read_checkpoint


class Call:
    """Asks the reader to call a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Never called: pickle wants what is called in the file to be callable."""


class Own:
    """An object of a class that is not data."""


def save(content, path, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return str(path)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('wrap', [
    lambda evil: evil, lambda evil: dict(state_dict=evil),
    lambda evil: dict(state_dict={'a': torch.ones(2)}, meta=[evil])
], ids=['whole', 'state dict', 'beside tensors'])
def test_code_does_not_run(wrap, legacy, tmp_path):
    witness = tmp_path / 'ran'
    path = save(wrap(Call(os.system, f'touch {witness}')), tmp_path / 'evil.pth', legacy)
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    assert not witness.exists()
    for fragment in (path, 'holds more than tensors and plain data', f'{os.name}.system is not data'):
        assert fragment in str(error.value)
    pickle.loads(pickle.dumps(wrap(Call(os.system, f'touch {witness}'))))
    assert witness.exists()  # the same content does run where it is not read as data


@pytest.mark.parametrize('content, name', [
    (Call(eval, '1'), 'builtins.eval'),
    (Call(exec, '1'), 'builtins.exec'),
    (Call(getattr, {}, 'clear'), 'builtins.getattr'),
    (Call(torch.load, '/nowhere'), 'torch.serialization.load'),
    (Call(torch.hub.load, 'a', 'b'), 'torch.hub.load'),
    (Call(np.load, '/nowhere'), 'numpy.*load'),
    (Call(Call(getattr, torch.Tensor, 'tolist'), torch.ones(1)), 'torch.Tensor.tolist'),
    (Call(Call(getattr, HistoryBuffer, 'mean'), 1), '_LogBuffer.mean'),
    (Call(getattr, torch.ones(1), 'numpy'), 'builtins.getattr'),
    (Call(Call(getattr, Call(getattr, Own, '__init__'), '__globals__')), f'{__name__}.Own.__init__.__globals__'),
    (Own(), f'{__name__}.Own'),
    (nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_what_is_not_data(content, name, tmp_path):
    path = save(dict(state_dict=content), tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=f'UnpicklingError: {name} is not data'):
        read_checkpoint(path)


def test_names_of_functions_come_as_stand_ins(tmp_path):
    path = save(dict(function=os.getcwd, own=Own, method=OneCycleLR._annealing_cos), tmp_path / 'c.pth')
    checkpoint = read_checkpoint(path)
    for name, stand_in in checkpoint.items():
        with pytest.raises(pickle.UnpicklingError, match='is not data'):
            stand_in()
        assert stand_in not in (os.getcwd, Own), name


def test_torchscript_does_not_run(tmp_path):
    witness = tmp_path / 'ran'

    class Program(nn.Module):

        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.ones(2))
            self.path = str(witness)

        def forward(self, x):
            return x + self.value

        @torch.jit.export
        def __getstate__(self):
            return self.value, self.path, self.training

        @torch.jit.export
        def __setstate__(self, state):
            # type: (Tuple[Tensor, str, bool]) -> None
            self.value = state[0]
            self.path = state[1]
            self.training = state[2]
            torch.save(state[0], state[1])

    path = str(tmp_path / 'program.pt')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(Program()).save(path)
        with pytest.raises(ValueError, match='it is a TorchScript archive, which is a program'):
            read_checkpoint(path)
        assert not witness.exists()
        torch.jit.load(path)
    assert witness.exists()  # the archive does run where it is loaded


def test_plain_data(tmp_path):
    content = dict(
        state_dict=OrderedDict(a=torch.randn(2, 3), half=torch.ones(2, dtype=torch.bfloat16),
                               count=torch.tensor(3), mask=torch.tensor([True]), p=nn.Parameter(torch.ones(2))),
        sizes=torch.Size([1, 2]), device=torch.device('cpu'), dtype=torch.float16, number=1.5, text='ü', nothing=None,
        raw=b'\x00\xff', group={1, 2}, frozen=frozenset('a'), part=slice(1, 2), complex=1 + 2j, counter=Counter('aab'),
        default=defaultdict(list, a=[1]), array=np.arange(6.).reshape(2, 3), ints=np.arange(3), scalar=np.float64(2.5),
        flag=np.bool_(True), nested=[({'x': (1, [2])}, )])
    for legacy in (False, True):
        read = read_checkpoint(save(content, tmp_path / 'c.pth', legacy))
        assert list(read) == list(content)
        for name, value in content['state_dict'].items():
            assert torch.equal(read['state_dict'][name], value), name
            assert read['state_dict'][name].dtype == value.dtype
            assert read['state_dict'][name].requires_grad == value.requires_grad
        for name, value in content.items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(read[name], value), name
                assert read[name].dtype == value.dtype
            elif name != 'state_dict':
                assert read[name] == value, name
                assert type(read[name]) is type(value), name


def test_views_share_their_storage(tmp_path):
    whole = torch.arange(6.)
    read = read_checkpoint(save(dict(whole=whole, part=whole[2:4]), tmp_path / 'c.pth'))
    read['whole'][2] = 9
    assert read['part'].tolist() == [9, 3]


@pytest.mark.parametrize('kept', [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_truncated(kept, legacy, tmp_path):
    path = save(dict(state_dict={'a': torch.randn(1000)}), tmp_path / 'c.pth', legacy)
    with open(path, 'rb') as file:
        content = file.read()
    content = content[:int(kept * len(content)) if isinstance(kept, float) else kept]
    with open(path, 'wb') as file:
        file.write(content)
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    assert f'checkpoint {path!r} ({len(content)} bytes) cannot be read: it is truncated, damaged' in str(error.value)


def test_a_text_file_is_no_checkpoint(tmp_path):
    path = tmp_path / 'pointer.pth'
    path.write_text('version https://git-lfs.github.com/spec/v1\n')
    with pytest.raises(ValueError, match='cannot be read'):
        read_checkpoint(str(path))


def test_missing(tmp_path):
    path = str(tmp_path / 'missing.pth')
    for wrong in (path, str(tmp_path)):
        with pytest.raises(FileNotFoundError) as error:
            read_checkpoint(wrong)
        assert str(error.value) == f'checkpoint {wrong!r} does not exist'


@pytest.mark.parametrize('content', [[1, 2], torch.ones(2)], ids=['list', 'tensor'])
def test_not_a_dict(content, tmp_path):
    path = save(content, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match=f'holds a {type(content).__name__}; a dict is needed'):
        read_checkpoint(path)


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
    path = save(content, tmp_path / 'c.pth')
    names = [b'cnumpy.core.multiarray\n', b'cnumpy._core.multiarray\n']
    own = np.zeros(1).__reduce__()[0].__module__
    other = names[0] if own == 'numpy._core.multiarray' else names[1]
    rename_module(path, f'c{own}\n'.encode(), other)
    read = read_checkpoint(path)
    assert read['array'].tolist() == [0, 1, 2]
    assert read['scalar'] == 1.5
    assert read['buffer'].mean() == 1.5


def test_log_buffers_bring_numbers_and_no_methods(tmp_path):
    buffer = HistoryBuffer([1., 2., 6.], [1, 1, 2], max_length=10)
    methods = dict(HistoryBuffer._statistics_methods)
    # What a forged file would enter into the class.
    buffer.__dict__['_statistics_methods'] = dict(methods, mean=len, forged=len)
    path = save(dict(buffer=buffer), tmp_path / 'c.pth')
    read = read_checkpoint(path)['buffer']
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
    """Leaves an array among the runner's messages, as a hook may."""

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
    checkpoint = read_checkpoint(str(tmp_path / 'epoch_2.pth'))
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
