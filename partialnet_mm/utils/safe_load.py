# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reading checkpoints without running code that they carry."""
import os
import pickle
from typing import IO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def read_checkpoint(path: str) -> dict:
    """Reads a checkpoint file as data: tensors, numbers, text and mmengine's log buffers.

    A file that asks for anything else, a function to call above all, is
    refused before anything of it runs.

    Args:
        path (str): A local file.

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


def _load(path: str) -> dict:
    if hasattr(torch.serialization, 'safe_globals'):
        with torch.serialization.safe_globals(_extra_classes()):
            return torch.load(path, map_location='cpu', weights_only=True)
    # torch before 2.5 cannot be told of mmengine's log buffers, so the same rule
    # is kept by an unpickler that finds only what is listed.
    return torch.load(path, map_location='cpu', pickle_module=_DataPickle)


def _extra_classes() -> list:
    """What mmengine's checkpoints hold beyond torch's own list: log buffers, arrays of numbers."""
    array_builder = np.zeros(1).__reduce__()[0]
    scalar_builder = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'uint8', 'bool')}
    return [HistoryBuffer, array_builder, scalar_builder, np.ndarray, np.dtype, *dtypes]


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that finds classes of data only."""

    allowed = {
        'collections': {'OrderedDict', 'defaultdict'},
        'builtins': {'set', 'frozenset', 'slice', 'complex', 'bytearray'},
        '_codecs': {'encode'},
        'torch._utils': {'_rebuild_tensor_v2', '_rebuild_parameter', '_rebuild_tensor'},
        'torch.storage': {'UntypedStorage', 'TypedStorage'},
        'torch.nn.parameter': {'Parameter'},
    }

    def find_class(self, module: str, name: str) -> object:
        if name in self.allowed.get(module, ()):
            return super().find_class(module, name)
        if module == 'torch' and '.' not in name:
            found = getattr(torch, name, None)
            if isinstance(found, torch.dtype) or found in (torch.Size, torch.device) or name.endswith('Storage'):
                return found
        for extra in _extra_classes():
            if (module, name) == (extra.__module__, extra.__name__):
                return extra
        raise pickle.UnpicklingError(f'{module}.{name} is not data')


class _DataPickle:
    """Stands where torch.load expects the module pickle."""

    Unpickler = _DataUnpickler

    @staticmethod
    def load(file: IO[bytes], **options: object) -> object:
        return _DataUnpickler(file, **options).load()
