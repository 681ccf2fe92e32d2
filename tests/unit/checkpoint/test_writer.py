# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Both formats of weights, written and read again."""
import json

import pytest
import torch
from safetensors import safe_open

from partialnet_mm.checkpoint import read_checkpoint, write_checkpoint
from partialnet_mm.version import __version__

META = dict(backbone=dict(type='PartialNet', arch='t0'), dataset_meta=dict(classes=['a', 'ü']), epoch=3)


@pytest.mark.parametrize('ending', ['.safetensors', '.pth'])
def test_what_is_written_is_read(ending, tmp_path):
    whole = torch.arange(6.).view(2, 3)
    state = dict(b=whole.t(), a=whole[1], half=torch.ones(2, dtype=torch.bfloat16), count=torch.tensor(3),
                 p=torch.nn.Parameter(torch.ones(2)), empty=torch.ones(0, 3))
    path = tmp_path / 'new' / f'c{ending}'
    write_checkpoint(dict(state_dict=state, meta=META), path)
    read = read_checkpoint(path)
    assert read['meta'] == META and set(read['state_dict']) == set(state)
    for name, value in state.items():
        assert torch.equal(read['state_dict'][name], value), name
        assert read['state_dict'][name].dtype == value.dtype
    # The same content gives the same bytes.
    write_checkpoint(dict(state_dict=state, meta=META), tmp_path / f'again{ending}')
    if ending == '.safetensors':
        assert path.read_bytes() == (tmp_path / f'again{ending}').read_bytes()


def test_other_programs_find_what_it_is_of(tmp_path):
    write_checkpoint(dict(state_dict=dict(a=torch.ones(2)), meta=META), tmp_path / 'c.safetensors')
    with safe_open(tmp_path / 'c.safetensors', 'pt') as file:
        assert file.get_tensor('a').tolist() == [1, 1]
        metadata = file.metadata()
    assert metadata == dict(format='pt', arch='t0', classes=json.dumps(['a', 'ü']), meta=json.dumps(META),
                            source=f'partialnet_mm {__version__}')


def test_metadata_has_one_order(tmp_path):
    """The library orders it by a hash that differs from process to process."""
    write_checkpoint(dict(state_dict=dict(b=torch.ones(2), a=torch.ones(1)), meta=META), tmp_path / 'c.safetensors')
    data = (tmp_path / 'c.safetensors').read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + size])
    assert size % 8 == 0
    assert list(header['__metadata__']) == ['arch', 'classes', 'format', 'meta', 'source']


@pytest.mark.parametrize('content, name, message', [
    (dict(state_dict={}, meta={}), 'c.bin', "c.bin' must end in .safetensors or .pth"),
    (dict(state_dict={}, meta={}), 'c', "c' must end in .safetensors or .pth"),
    (dict(state_dict={}), 'c.pth', r"has 'state_dict' and 'meta', got \['state_dict'\]"),
    (dict(state_dict={}, meta={}, optimizer={}), 'c.pth', "has 'state_dict' and 'meta', got"),
    (dict(state_dict={}, meta=dict(loss=float('nan'))), 'c.safetensors', 'meta cannot be written as JSON'),
    (dict(state_dict={}, meta=dict(kind=torch.ones(1))), 'c.safetensors', 'meta cannot be written as JSON'),
])
def test_what_cannot_be_written(content, name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_checkpoint(content, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
