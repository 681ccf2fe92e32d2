# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The pickle stream of a checkpoint, read as data: it is interpreted, and nothing that it names is imported or called.

Python's unpickler is a machine that calls what a file names. This one knows the 30 instructions that ``torch.save``
writes, builds plain values by them, and turns the few known calls (a tensor, an array, a set, a log buffer) into
values of its own after checking each number. It keeps its own stack, so that no depth of a file is a depth of calls,
and it stops when the values would take more memory than allowed.
"""
import io
import re
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NoReturn

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

#: Most levels of containers in each other.
MAX_DEPTH = 100
#: Largest size, stride or offset.
MAX_EXTENT = 1 << 48
#: Keys that Python hashes with a secret or to themselves, so that no file can choose keys of one hash.
MAX_KEY = 1 << 60

#: Upper bounds of what one instruction leaves in memory, in bytes.
_COST, _CONTAINER, _TENSOR = 160, 400, 1200

_STORAGES = {f'torch.{name}Storage': dtype for name, dtype in dict(
    Double=torch.float64, Float=torch.float32, Half=torch.float16, BFloat16=torch.bfloat16, Long=torch.int64,
    Int=torch.int32, Short=torch.int16, Char=torch.int8, Byte=torch.uint8, Bool=torch.bool,
    ComplexDouble=torch.complex128, ComplexFloat=torch.complex64).items()}
_STORAGES['torch.storage.UntypedStorage'] = torch.uint8
_LOG_BUFFER = f'{HistoryBuffer.__module__}.HistoryBuffer'
#: The arguments of a command, which timm's trainings save; they are read as a dict.
_NAMESPACE = 'argparse.Namespace'


class Refusal(ValueError):
    """What is wrong with a file, as the end of a sentence."""


class Reference(str):
    """The name of a function or class that a file refers to: a name is data, and nobody can call it."""

    __slots__ = ()


class _Storage:
    """The memory of one or several tensors, and the type of its numbers."""

    def __init__(self, memory: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.memory, self.dtype = memory, dtype


class _Unfinished:
    """An object whose content comes later in the file, by BUILD."""

    def __init__(self, name: str, arguments: tuple) -> None:
        self.name, self.arguments = name, arguments
        self.memo_keys: list[int] = []


class Budget:
    """Bytes of memory that the values of a file may take."""

    def __init__(self, limit: int) -> None:
        self._limit = self.left = limit

    def spend(self, cost: int) -> None:
        """Raises a Refusal if less is left."""
        self.left -= cost
        if self.left < 0:
            raise Refusal(f'beside its tensors, it holds data of more than {self._limit >> 20} MiB')


def _refuse(name: str) -> NoReturn:
    raise Refusal(f'it asks for {name}, and {name} is not data')


def _expect(condition: object, what: str) -> None:
    if not condition:
        raise Refusal(f'it is damaged or forged: {what}')


def _extent(value: object, what: str) -> int:
    _expect(type(value) is int and 0 <= value <= MAX_EXTENT, f'{what} is out of range')
    return value


def _extents(values: object, what: str) -> tuple[int, ...]:
    _expect(isinstance(values, tuple) and len(values) <= 32, f'{what} is not a tuple of at most 32 numbers')
    return tuple(_extent(value, what) for value in values)


def _key(key: object) -> object:
    _expect(isinstance(key, str) or key is None or isinstance(key, int) and abs(key) <= MAX_KEY,
            f'a key is a {type(key).__name__}; allowed are texts, and integers below 2^60')
    return key


class DataPickle:
    """Reads one stream.

    Args:
        file: The stream.
        load_storage: Gives the memory of the storage of a name in the file.
        budget: What the values may take, beside storages.
    """

    def __init__(self, file: io.BufferedIOBase, load_storage: Callable[[str], torch.UntypedStorage],
                 budget: Budget) -> None:
        self._file = file
        self._load_storage = load_storage
        self._budget = budget
        self._stack: list = []
        self._outer_stacks: list[list] = []
        self._memo: dict[int, object] = {}

    def load(self) -> object:
        """The value that the stream describes.

        Raises:
            Refusal: If it is more than data, damaged, or too large.
            Exception: Of other types, if it is damaged.
        """
        while True:
            code = self._take(1)
            if code == b'.':
                break
            if code not in _INSTRUCTIONS:
                raise Refusal(f'its pickle has the instruction {code!r}, which torch.save does not write')
            self._budget.spend(_COST)
            _INSTRUCTIONS[code](self)
        _expect(not self._outer_stacks and len(self._stack) == 1, 'its pickle does not end in one value')
        # Reading to the end makes the archive compare the checksum.
        _expect(self._file.read(1) == b'', 'something follows its pickle')
        return self._stack[0]

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        _expect(len(data) == count, 'its pickle ends early')
        return data

    def _number(self, layout: str) -> int | float:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop_marked(self) -> list:
        marked, self._stack = self._stack, self._outer_stacks.pop()
        return marked

    # Instructions

    def _mark(self) -> None:
        self._budget.spend(_CONTAINER)
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _container(self, make: type) -> None:
        self._budget.spend(_CONTAINER)
        self._push(make())

    def _tuple(self, items: list) -> None:
        self._budget.spend(_CONTAINER)
        self._push(tuple(items))

    def _tuple_of(self, count: int) -> None:
        _expect(len(self._stack) >= count, 'a tuple is too short')
        items = self._stack[-count:]
        del self._stack[-count:]
        self._tuple(items)

    def _append(self, items: list) -> None:
        _expect(type(self._stack[-1]) is list, 'it appends to what is no list')
        self._stack[-1].extend(items)

    def _set_items(self, items: list) -> None:
        target = self._stack[-1]
        _expect(type(target) in (dict, OrderedDict) and len(items) % 2 == 0, 'it sets items of what is no dict')
        self._budget.spend(100 * len(items))
        for i in range(0, len(items), 2):
            target[_key(items[i])] = items[i + 1]

    def _set_item(self) -> None:
        value = self._stack.pop()
        self._set_items([self._stack.pop(), value])

    def _long(self) -> None:
        size = self._take(1)[0]
        self._budget.spend(2 * size)
        self._push(int.from_bytes(self._take(size), 'little', signed=True))

    def _text(self) -> None:
        size = self._number('<I')
        _expect(4 * size <= self._budget.left, f'a text of {size} bytes is too long')  # 4 bytes for each of them
        text = self._take(size).decode('utf-8')
        self._budget.spend(sys.getsizeof(text))
        self._push(text)

    def _global(self) -> None:
        words = [self._file.readline(200) for _ in range(2)]
        _expect(all(re.fullmatch(rb'[A-Za-z0-9_.]+\n', word) for word in words), 'the name of a function is none')
        module, name = (word[:-1].decode() for word in words)
        # Protocol 2, which torch writes, calls builtins by the name of Python 2.
        name = f'{"builtins" if module == "__builtin__" else module}.{name}'
        self._budget.spend(_CONTAINER)
        dtype = getattr(torch, name[len('torch.'):], None) if name.startswith('torch.') else None
        self._push(dtype if isinstance(dtype, torch.dtype) else Reference(name))

    def _put(self, layout: str) -> None:
        key = self._number(layout)
        self._memo[key] = self._stack[-1]
        if isinstance(self._stack[-1], _Unfinished):
            self._stack[-1].memo_keys.append(key)

    def _get(self, layout: str) -> None:
        self._push(self._memo[self._number(layout)])

    def _storage(self) -> None:
        kind, name, key, _, count = self._stack.pop()
        _expect(kind == 'storage' and isinstance(key, str), 'a storage has no name')
        if not isinstance(name, Reference) or name not in _STORAGES:
            _refuse(str(name)[:200])
        memory, dtype = self._load_storage(key), _STORAGES[name]
        _expect(_extent(count, 'the number of values') * dtype.itemsize <= memory.nbytes(),
                f'storage {key[:50]!r} has {memory.nbytes()} bytes and not {count} values of {dtype}')
        self._budget.spend(_TENSOR)
        self._push(_Storage(memory, dtype))

    def _call(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        _expect(type(arguments) is tuple and isinstance(name, Reference), 'it calls what is no function')
        build = _BUILDERS.get(name) or _refuse(name)
        self._push(build(self, *arguments))

    def _new(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if name not in (_LOG_BUFFER, _NAMESPACE) or not isinstance(name, Reference) or arguments != ():
            _refuse(name if isinstance(name, Reference) else type(name).__name__)
        self._push(self._begin(name))

    def _finish(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is OrderedDict:
            target._metadata = self._module_versions(state)
            return
        _expect(isinstance(target, _Unfinished), f'a {type(target).__name__} has a state')
        value = _FINISHERS[target.name](self, target.arguments, state)
        self._stack[-1] = value
        for key in target.memo_keys:
            self._memo[key] = value

    def _module_versions(self, state: dict) -> OrderedDict:
        """What ``Module.state_dict()`` adds to its dict: the version of each module's tensors."""
        versions = state['_metadata'] if type(state) is dict and list(state) == ['_metadata'] else None
        _expect(isinstance(versions, dict), 'a dict has a state')
        for entry in versions.values():
            self._budget.spend(200)
            _expect(type(entry) is dict and len(entry) <= 1 and all(type(version) is int for version in entry.values()),
                    'the version of a module is none')
        return OrderedDict(versions)

    # Known calls

    def _begin(self, name: str, *arguments: object) -> _Unfinished:
        self._budget.spend(_CONTAINER)
        return _Unfinished(name, arguments)

    def _tensor(self, storage: _Storage, offset: int, size: tuple, stride: tuple, requires_grad: bool, hooks: object,
                dtype: torch.dtype | None = None, metadata: object = None) -> torch.Tensor:
        _expect(isinstance(storage, _Storage), 'a tensor has no storage')
        dtype = storage.dtype if dtype is None else dtype
        _expect(isinstance(dtype, torch.dtype), 'a tensor has no type')
        _expect(not hooks and not metadata, 'a tensor has hooks or is conjugated')
        _extent(offset, 'the offset of a tensor')
        size, stride = _extents(size, 'the size of a tensor'), _extents(stride, 'the stride of a tensor')
        _expect(len(size) == len(stride), 'a tensor has other sizes than strides')
        last = sum((length - 1) * step for length, step in zip(size, stride)) + 1 if all(size) else 0
        _expect((offset + last) * dtype.itemsize <= storage.memory.nbytes(), 'a tensor reaches out of its storage')
        self._budget.spend(_TENSOR)
        tensor = torch.empty(0, dtype=dtype).set_(storage.memory, offset, size, stride)
        return tensor.requires_grad_(bool(requires_grad) and (dtype.is_floating_point or dtype.is_complex))

    def _tensor_v2(self, storage: _Storage, offset: int, size: tuple, stride: tuple, requires_grad: bool,
                   hooks: object, metadata: object = None) -> torch.Tensor:
        return self._tensor(storage, offset, size, stride, requires_grad, hooks, None, metadata)

    def _parameter(self, data: torch.Tensor, requires_grad: bool, hooks: object) -> nn.Parameter:
        _expect(isinstance(data, torch.Tensor) and not hooks, 'a parameter is no tensor, or has hooks')
        self._budget.spend(_TENSOR)
        return nn.Parameter(data.detach(), bool(requires_grad) and data.dtype.is_floating_point)

    def _plain_dict(self, content: dict) -> dict:
        _expect(type(content) is dict, 'a config or the arguments of a command are no dict')
        return content

    def _finish_namespace(self, arguments: tuple, state: dict) -> dict:
        return self._plain_dict(state)

    def _set(self, kind: type, items: list = ()) -> set | frozenset:
        _expect(isinstance(items, (list, tuple)), 'a set is made of no list')
        self._budget.spend(_CONTAINER + 100 * len(items))
        return kind(map(_key, items))

    def _counter(self, counts: dict = ()) -> Counter:
        _expect(counts == () or type(counts) is dict, 'a counter is made of no dict')
        self._budget.spend(_CONTAINER + 200 * len(counts))
        return Counter(counts)

    def _size(self, sizes: tuple) -> torch.Size:
        self._budget.spend(_CONTAINER)
        return torch.Size(_extents(sizes, 'a size'))

    def _bytes(self) -> bytes:
        return b''

    def _encoded(self, text: str, encoding: str) -> bytes:
        _expect(isinstance(text, str) and encoding == 'latin1', 'bytes are written as no text')
        self._budget.spend(len(text))
        return text.encode('latin1')

    def _attribute(self, owner: Reference, name: str) -> Reference:
        """``getattr``, by which log buffers and schedulers refer to methods."""
        if not isinstance(owner, Reference) or not isinstance(name, str) or not name.isidentifier():
            _refuse('builtins.getattr')
        _expect(len(owner) + len(name) < 400, 'the name of a method is too long')
        self._budget.spend(_CONTAINER)
        return Reference(f'{owner}.{name}')

    def _dtype(self, code: str, align: object, copy: object) -> _Unfinished:
        if not isinstance(code, str) or not re.fullmatch('b1|[iu][1248]|f[248]', code):
            _refuse('an array that is not of numbers')
        return self._begin('numpy.dtype', code)

    def _array(self, *_: object) -> _Unfinished:
        return self._begin('numpy.ndarray')

    def _scalar(self, dtype: np.dtype, data: bytes) -> bool | int | float:
        return self._numbers(dtype, data, ()).item()

    def _numbers(self, dtype: np.dtype, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        _expect(isinstance(dtype, np.dtype) and isinstance(data, bytes), 'an array has no type or no content')
        count = 1
        for length in _extents(shape, 'the size of an array'):
            count *= length
        _expect(count * dtype.itemsize == len(data), f'an array of {count} values has {len(data)} bytes')
        self._budget.spend(_CONTAINER + 2 * len(data))
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder('=')) if data else np.empty(0, dtype)

    # What BUILD makes of an unfinished object and its state

    def _finish_dtype(self, arguments: tuple[str], state: tuple) -> np.dtype:
        _expect(isinstance(state, tuple) and len(state) >= 2 and state[1] in ('<', '>', '|', '='),
                'the type of an array has no order of bytes')
        return np.dtype(state[1] + arguments[0])

    def _finish_array(self, arguments: tuple, state: tuple) -> np.ndarray:
        _expect(isinstance(state, tuple) and len(state) == 5, 'the state of an array is none')
        _, shape, dtype, fortran, data = state
        return self._numbers(dtype, data, shape).reshape(shape, order='F' if fortran else 'C')

    def _finish_log_buffer(self, arguments: tuple, state: dict) -> HistoryBuffer:
        """mmengine's log buffer of the numbers in a file; its methods are those of the class."""
        _expect(isinstance(state, dict), 'a log buffer has no content')
        values, counts, most = (state.get(key) for key in ('_log_history', '_count_history', 'max_length'))
        _expect(all(isinstance(array, np.ndarray) and array.ndim == 1 for array in (values, counts))
                and len(values) == len(counts) <= _extent(most, 'the length of a log buffer'), 'a log buffer is uneven')
        self._budget.spend(_CONTAINER + values.nbytes + counts.nbytes)
        return HistoryBuffer(values, counts, most)


_INSTRUCTIONS: dict[bytes, Callable[[DataPickle], None]] = {
    b'\x80': lambda self: self._take(1),
    b'(': DataPickle._mark,
    b'}': lambda self: self._container(dict),
    b']': lambda self: self._container(list),
    b')': lambda self: self._push(()),
    b't': lambda self: self._tuple(self._pop_marked()),
    b'\x85': lambda self: self._tuple_of(1),
    b'\x86': lambda self: self._tuple_of(2),
    b'\x87': lambda self: self._tuple_of(3),
    b'a': lambda self: self._append([self._stack.pop()]),
    b'e': lambda self: self._append(self._pop_marked()),
    b's': DataPickle._set_item,
    b'u': lambda self: self._set_items(self._pop_marked()),
    b'N': lambda self: self._push(None),
    b'\x88': lambda self: self._push(True),
    b'\x89': lambda self: self._push(False),
    b'J': lambda self: self._push(self._number('<i')),
    b'K': lambda self: self._push(self._number('<B')),
    b'M': lambda self: self._push(self._number('<H')),
    b'\x8a': DataPickle._long,
    b'G': lambda self: self._push(self._number('>d')),
    b'X': DataPickle._text,
    b'c': DataPickle._global,
    b'q': lambda self: self._put('<B'),
    b'r': lambda self: self._put('<I'),
    b'h': lambda self: self._get('<B'),
    b'j': lambda self: self._get('<I'),
    b'Q': DataPickle._storage,
    b'R': DataPickle._call,
    b'\x81': DataPickle._new,
    b'b': DataPickle._finish,
}

_BUILDERS: dict[str, Callable] = {
    'torch._utils._rebuild_tensor_v2': DataPickle._tensor_v2,
    'torch._utils._rebuild_tensor_v3': DataPickle._tensor,
    'torch._utils._rebuild_parameter': DataPickle._parameter,
    'torch.Size': DataPickle._size,
    'collections.OrderedDict': lambda self: OrderedDict(),
    'collections.defaultdict': lambda self, *factory: {},
    'collections.Counter': DataPickle._counter,
    'mmengine.config.config.ConfigDict': DataPickle._plain_dict,
    'builtins.set': lambda self, *items: self._set(set, *items),
    'builtins.frozenset': lambda self, *items: self._set(frozenset, *items),
    'builtins.bytes': DataPickle._bytes,
    'builtins.getattr': DataPickle._attribute,
    '_codecs.encode': DataPickle._encoded,
    'numpy.dtype': DataPickle._dtype,
    # numpy 2 renamed the module of these; either set of packages reads the other's checkpoints.
    **{f'numpy.{core}.multiarray.{name}': build for core in ('core', '_core') for name, build in (
        ('_reconstruct', DataPickle._array), ('scalar', DataPickle._scalar))},
}

_FINISHERS: dict[str, Callable] = {
    'numpy.dtype': DataPickle._finish_dtype,
    'numpy.ndarray': DataPickle._finish_array,
    _LOG_BUFFER: DataPickle._finish_log_buffer,
    _NAMESPACE: DataPickle._finish_namespace,
}


def check_tree(root: object, most: int) -> None:
    """Makes sure that a value can be walked through: no cycles, no great depth, no branch that is shared many times.

    Args:
        root: Containers of plain values, tensors, arrays and log buffers.
        most: Bytes that the value may take if each branch and each tensor is
            copied wherever it is named.

    Raises:
        Refusal: If it cannot, or holds something unfinished.
    """
    sizes: dict[int, int] = {}  # of containers that are walked through
    heights: dict[int, int] = {}
    stack = [(root, False)]
    entered: set[int] = set()
    while stack:
        value, leaving = stack.pop()
        if leaving:
            children = list(_children(value))
            sizes[id(value)] = sum(sizes[id(child)] if id(child) in sizes else _plain_size(child)
                                   for child in children) + 64
            heights[id(value)] = 1 + max((heights.get(id(child), 0) for child in children), default=0)
            _expect(heights[id(value)] <= MAX_DEPTH, f'containers lie in each other more than {MAX_DEPTH} deep')
            _expect(sizes[id(value)] <= most, f'it is small and would become more than {most >> 20} MiB')
            entered.discard(id(value))
        elif isinstance(value, (dict, list, tuple)) and id(value) not in sizes:
            _expect(id(value) not in entered, 'a container contains itself')
            entered.add(id(value))
            stack.append((value, True))
            stack.extend((child, False) for child in _children(value) if isinstance(child, (dict, list, tuple)))


def _children(value: dict | list | tuple) -> list | tuple:
    return [*value.keys(), *value.values()] if isinstance(value, dict) else value


def _plain_size(value: object) -> int:
    if isinstance(value, (str, bytes, set, frozenset)):
        return 64 + 4 * len(value)
    if isinstance(value, torch.Tensor):
        return 64 + value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return 64 + value.nbytes
    if isinstance(value, HistoryBuffer):
        return 64 + sum(array.nbytes for array in value.data)
    _expect(value is None or isinstance(value, (bool, int, float, torch.dtype)),
            f'a {type(value).__name__.strip("_")} stands where a value is needed')
    return 64
