# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The state of a training becomes plain data and comes back."""
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import MultiStepLR, OneCycleLR
from torch import nn

from partialnet_mm.engine.hooks._random_state import check_random_state, get_random_state, set_random_state
from partialnet_mm.engine.hooks._training_state import plain_checkpoint, restore_hub, restore_schedulers, to_plain


def types_in(value):
    """The types of all values and keys in nested containers."""
    if isinstance(value, dict):
        return {type(value)}.union(*(types_in(item) for pair in value.items() for item in pair))
    if isinstance(value, (list, tuple)):
        return {type(value)}.union(*map(types_in, value))
    return {type(value)}


@pytest.mark.parametrize('value, plain', [
    (np.float64(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (np.str_('a'), 'a'), (Path('a/b'), 'a/b'),
    (np.array([[1, 2]]), [[1, 2]]), (deque([1, 'a']), [1, 'a']), ({3}, [3]), ((1, (2.5, None)), (1, (2.5, None))),
    (ConfigDict(a=dict(b=1)), dict(a=dict(b=1))), (OrderedDict(a=1), dict(a=1)),
    (defaultdict(list, a=[1]), dict(a=[1])), (Counter([4, 4, 7]), {4: 2, 7: 1}), (True, True), (b'x', b'x'),
])
def test_values_become_plain(value, plain):
    found = to_plain(value)
    assert found == plain
    assert types_in(found) <= {dict, list, tuple, str, bytes, int, float, bool, type(None)}


def test_tensors_stay_and_what_is_no_data_is_refused():
    parameter = nn.Parameter(torch.ones(2))
    assert type(to_plain(dict(a=parameter))['a']) is torch.Tensor
    for value in (print, object(), [np.random.RandomState()], torch.device('cpu')):
        with pytest.raises(TypeError, match='is not plain data'):
            to_plain(value)


def schedulers():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.)
    return [MultiStepLR(optimizer, milestones=[2, 5]),
            OneCycleLR(optimizer, eta_max=1., total_steps=9)]


def test_a_checkpoint_holds_plain_data_and_comes_back():
    trained = schedulers()
    for scheduler in trained:
        scheduler.optimizer.step()
        scheduler.step()
    history = HistoryBuffer([1, 2.5], [1, 2], max_length=7)
    dropped = []
    plain = plain_checkpoint(
        dict(meta=dict(epoch=np.int64(2), dataset_meta=dict(classes=('a', ), palette=np.eye(2)), odd=object()),
             state_dict=OrderedDict(weight=torch.ones(2)), own_of_a_hook=print,
             message_hub=dict(log_scalars=OrderedDict(loss=history), resumed_keys=dict(loss=True, best=True, hook=True),
                              runtime_info=OrderedDict(best=np.float32(0.5), hook=object())),
             param_schedulers=[scheduler.state_dict() for scheduler in trained]),
        lambda name, reason: dropped.append(name))
    assert dropped == ['meta.odd', 'own_of_a_hook', 'message_hub.hook']
    assert types_in(plain) <= {dict, OrderedDict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    assert plain['meta'] == dict(epoch=2, dataset_meta=dict(classes=('a', ), palette=[[1., 0.], [0., 1.]]))

    hub = restore_hub(plain['message_hub'])
    assert hub['runtime_info'] == dict(best=0.5) and hub['resumed_keys'] == dict(loss=True, best=True)
    assert [data.tolist() for data in hub['log_scalars']['loss'].data] == [[1, 2.5], [1, 2]]
    assert hub['log_scalars']['loss'].max_length == 7
    fresh = schedulers()
    for scheduler, state in zip(fresh, restore_schedulers(plain['param_schedulers'], fresh)):
        scheduler.load_state_dict(state)
    assert fresh[0].milestones == Counter([2, 5]) and isinstance(fresh[0].milestones, Counter)
    for restored, scheduler in zip(fresh, trained):
        same = restored.state_dict().keys() == scheduler.state_dict().keys()
        assert same and restored.last_step == scheduler.last_step == 1
        restored.step()


def test_mmengines_own_state_comes_back_without_methods():
    """Its checkpoints name methods of log buffers and schedulers."""
    history = HistoryBuffer([1], [1])
    history._log_history = np.array([3.])
    hub = restore_hub(dict(log_scalars=dict(loss=history), runtime_info=dict(best=1), resumed_keys=dict(loss=True)))
    assert hub['log_scalars']['loss'] is not history and hub['log_scalars']['loss'].current() == 3.
    fresh = schedulers()
    hostile = dict(fresh[1].state_dict(), step=print, anneal_func=print, optimizer=None, last_step=4, get_last_value=1)
    state = restore_schedulers([fresh[0].state_dict(), hostile], fresh)[1]
    assert state['last_step'] == 4
    assert not {'step', 'anneal_func', 'optimizer', 'get_last_value'} & set(state)


@pytest.mark.parametrize('hub', [
    {}, dict(log_scalars=3, runtime_info={}, resumed_keys={}),
    dict(log_scalars=dict(loss=dict(history=torch.ones(2), counts=torch.ones(3), max_length=5)), runtime_info={},
         resumed_keys={}),
    dict(log_scalars=dict(loss=print), runtime_info={}, resumed_keys={}),
])
def test_a_damaged_hub_is_a_value_error(hub):
    with pytest.raises(ValueError, match='its message_hub is damaged'):
        restore_hub(hub)


@pytest.mark.parametrize('states', [[], [{}], [{}, 3], {}, None])
def test_schedulers_of_another_config_are_a_value_error(states):
    with pytest.raises(ValueError, match='its param_schedulers belong to another config'):
        restore_schedulers(states, schedulers())


def test_random_numbers_come_back():
    state = to_plain(get_random_state())
    drawn = np.random.random(), torch.rand(1).item()
    check_random_state(state)
    set_random_state(state)
    assert (np.random.random(), torch.rand(1).item()) == drawn
    for damage in (dict(python=[3, [1], None]), dict(numpy=[torch.ones(3), 1, 0, 0.]), dict(torch=torch.ones(2)), {}):
        with pytest.raises(ValueError, match='its random state is damaged'):
            check_random_state(dict(state, **damage) if damage else {})
