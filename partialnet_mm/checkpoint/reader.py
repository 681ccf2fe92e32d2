# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reading checkpoints without running code that they carry."""
import codecs
import os
import pickle
from collections import Counter, OrderedDict, defaultdict
from typing import IO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import _utils


def read_checkpoint(path: str) -> dict:
    """Reads a checkpoint file as data: tensors, numbers, text and mmengine's log buffers.

    A file that asks to call a function or to build an object beyond these is
    refused before anything of it runs. Functions and classes that it only names
    come as stand-ins that nobody can call.

    Args:
        path: A local file.

    Returns:
        dict: What was saved, tensors on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, no checkpoint, or asks for more than
            data.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'checkpoint {path!r} does not exist')
    try:
        checkpoint = _load(path)
    except Exception as error:  # torch raises many types for damaged files
        raise ValueError(
            f'checkpoint {path!r} ({os.path.getsize(path)} bytes) cannot be read: it is truncated, damaged, or '
            f'holds more than tensors and plain data ({type(error).__name__}: {str(error)[:300]})') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'checkpoint {path!r} holds a {type(checkpoint).__name__}; a dict is needed')
    return checkpoint


def _load(path: str) -> object:
    # torch's own weights-only mode does not fit: it runs TorchScript archives before torch 2.6, cannot be
    # told of mmengine's log buffers before 2.5, and advises to switch it off when it refuses a file.
    if _is_torchscript(path):
        raise pickle.UnpicklingError('it is a TorchScript archive, which is a program')
    return torch.load(path, map_location='cpu', pickle_module=_DataPickle, weights_only=False)


def _is_torchscript(path: str) -> bool:
    # Both tests are those of torch.load, so that a forged file cannot pass here and be taken for one there.
    with open(path, 'rb') as file:
        if file.read(4) != b'PK\x03\x04':
            return False
    return 'constants.pkl' in torch._C.PyTorchFileReader(path).get_all_records()


class _LogBuffer(HistoryBuffer):
    """mmengine's log buffer, which takes numbers from a file and no functions."""

    def __setstate__(self, state: dict) -> None:
        self.__init__(state['_log_history'], state['_count_history'], state['max_length'])
        self.__class__ = HistoryBuffer


class _Reference:
    """A function or class that a file names: to name it is data, to call it is not."""

    def __new__(cls, *args: object, **kwargs: object) -> '_Reference':
        raise pickle.UnpicklingError(f'{cls.__name__} is not data')


def _refer(name: str) -> type[_Reference]:
    return type(name, (_Reference, ), {})


def _attribute(owner: type, name: str) -> type[_Reference]:
    """Stands for ``getattr``, by which log buffers and schedulers name methods."""
    if not isinstance(owner, type) or not issubclass(owner, (_LogBuffer, _Reference)):
        raise pickle.UnpicklingError('builtins.getattr is not data')
    return _refer(f'{owner.__name__}.{name}')


def _data_globals() -> dict[str, object]:
    """All that a checkpoint may call or build, except torch's dtypes."""
    found = {
        'collections.Counter': Counter,  # milestones of MultiStepLR
        'collections.OrderedDict': OrderedDict,
        'collections.defaultdict': defaultdict,
        '_codecs.encode': codecs.encode,
        'torch.Size': torch.Size,
        'torch.device': torch.device,
        'numpy.ndarray': np.ndarray,
        'numpy.dtype': np.dtype,
        'mmengine.logging.history_buffer.HistoryBuffer': _LogBuffer,
        'builtins.getattr': _attribute,
    }
    found.update({f'builtins.{plain.__name__}': plain for plain in (set, frozenset, slice, complex, bytearray)})
    for rebuild in (_utils._rebuild_tensor, _utils._rebuild_tensor_v2, _utils._rebuild_parameter):
        found[f'torch._utils.{rebuild.__name__}'] = rebuild
    # numpy 2 renamed the module of these; either set of packages reads the other's checkpoints.
    for builder in (np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]):
        for core in ('numpy.core', 'numpy._core'):
            found[f'{core}.multiarray.{builder.__name__}'] = builder
    return found


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that calls and builds data only."""

    allowed = _data_globals()

    def find_class(self, module: str, name: str) -> object:
        # Protocol 2, which torch writes, calls builtins by the name of Python 2.
        full_name = f'{"builtins" if module == "__builtin__" else module}.{name}'
        if full_name in self.allowed:
            return self.allowed[full_name]
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _refer(full_name)


class _DataPickle:
    """Stands where torch.load expects the module pickle."""

    Unpickler = _DataUnpickler

    @staticmethod
    def load(file: IO[bytes], **options: object) -> object:
        return _DataUnpickler(file, **options).load()
