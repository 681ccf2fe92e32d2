# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Files that are no checkpoint to trust: hostile, damaged, or no data. Each kind is a function that writes one.

``CODE`` run a program, or try to, where a pickle is loaded; ``MEMORY`` ask for much time or memory; ``FORGED`` point
tensors and arrays out of what they own; ``DAMAGED`` are broken or of another kind.
"""
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

Write = Callable[[Path, Path], None]


class Call:
    """Asks whoever unpickles it to call a function."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """Never called: pickle wants what is called in the file to be callable."""


class Own:
    """An object of a class that is not data."""


# A small assembler of pickles

def text(value: str) -> bytes:
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def name(module: str, function: str) -> bytes:
    return f'c{module}\n{function}\n'.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
    return b'\x8a' + bytes([len(data)]) + data


def items(*values: bytes) -> bytes:
    return b'(' + b''.join(values) + b't'


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + items(*arguments) + b'R'


def storage(key: str, count: int, kind: tuple[str, str] = ('torch', 'FloatStorage')) -> bytes:
    return items(text('storage'), name(*kind), text(key), text('cpu'), number(count)) + b'Q'


def tensor(memory: bytes, offset: int, size: list[int], stride: list[int]) -> bytes:
    return call(name('torch._utils', '_rebuild_tensor_v2'), memory, number(offset), items(*map(number, size)),
                items(*map(number, stride)), b'\x89', call(name('collections', 'OrderedDict')))


LATIN = partial(call, name('_codecs', 'encode'))
ARRAY = call(name('numpy.core.multiarray', '_reconstruct'), name('numpy', 'ndarray'), items(b'K\x00'),
             LATIN(text('b'), text('latin1')))


def dtype(code: str) -> bytes:
    return (call(name('numpy', 'dtype'), text(code), b'\x89', b'\x88')
            + items(b'K\x03', text('<'), b'N', b'N', b'N', number(-1), number(-1), b'K\x00') + b'b')


def array(shape: list[int], code: str, data: bytes) -> bytes:
    return ARRAY + items(b'K\x01', items(*map(number, shape)), dtype(code), b'\x89', data) + b'b'


def content(hostile: bytes) -> bytes:
    """A checkpoint with something among its tensors."""
    return b'\x80\x02}(' + text('meta') + b'}' + text('state_dict') + b'}' + text('weight') + hostile + b'su.'


def write_archive(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED,
                  folder: str = 'archive') -> None:
    with zipfile.ZipFile(path, 'w', method) as archive:
        archive.writestr(f'{folder}/data.pkl', pickled)
        archive.writestr(f'{folder}/version', b'3\n')
        for key, data in (records or {}).items():
            archive.writestr(f'{folder}/{key}', data)


def assembled(hostile: bytes, **records: bytes) -> Write:
    """Writes pickled instructions that stand for the first tensor."""
    named = {f'data/{key.lstrip("_")}': data for key, data in records.items()}
    return lambda path, canary: write_archive(path, content(hostile), named)


def whole(pickled: bytes) -> Write:
    return lambda path, canary: write_archive(path, pickled)


def saved(make: Callable[[Path], object], legacy: bool = False) -> Write:
    """``torch.save`` of something among healthy tensors."""

    def write(path: Path, canary: Path) -> None:
        state = dict(first=torch.ones(2), hostile=make(canary))
        torch.save(dict(state_dict=state, meta=dict(epoch=1, iter=1)), path,
                   _use_new_zipfile_serialization=not legacy)

    return write


def shell(canary: Path) -> Call:
    return Call(os.system, f'touch {canary}')


# Code

def write_torchscript(path: Path, canary: Path) -> None:

    class Program(torch.nn.Module):

        def __init__(self):
            super().__init__()
            self.value = torch.nn.Parameter(torch.ones(2))
            self.path = str(canary)

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

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.script(Program()).save(str(path))


def write_legacy_module(path: Path, canary: Path) -> None:
    """The format before zip, whose entry 'module' holds a source file that the loader writes and compares."""
    stream = io.BytesIO()
    for value in (0x1950a86a20f9469cfc6c, 1001, dict(protocol_version=1001, little_endian=True, type_sizes={})):
        pickle.dump(value, stream, protocol=2)
    path.write_bytes(stream.getvalue() + b'\x80\x02}' + text('state_dict') + items(
        text('module'), name('torch.nn', 'Linear'), text(str(canary)), text('touched')) + b'Qs.')


def write_legacy_tar(path: Path, canary: Path, kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as archive:
        for member in ('sys_info', 'pickle', 'storages', 'tensors'):
            info = tarfile.TarInfo(member)
            data = pickle.dumps(dict(protocol_version=1000))
            if member == 'storages':
                info.type, info.linkname = kind, str(canary)
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))


CODE: dict[str, Write] = {
    'os.system': saved(shell),
    'os.system, legacy format': saved(shell, legacy=True),
    'os.system as whole file': lambda path, canary: torch.save(shell(canary), path),
    'bare pickle': lambda path, canary: path.write_bytes(pickle.dumps(dict(state_dict=shell(canary)))),
    'eval': saved(lambda canary: Call(eval, f'open({str(canary)!r}, "w")')),
    'os.system by its own name': assembled(call(name('posix', 'system'), text('touch canary'))),
    'globals of a method': saved(lambda canary: Call(Call(getattr, Call(getattr, Own, '__init__'), '__globals__'))),
    'method of a tensor': saved(lambda canary: Call(Call(getattr, torch.Tensor, 'tolist'), torch.ones(1))),
    'getattr of a dict': saved(lambda canary: Call(getattr, {}, 'clear')),
    'torch.load': saved(lambda canary: Call(torch.load, str(canary))),
    'torch.hub.load': saved(lambda canary: Call(torch.hub.load, 'a', 'b')),
    'numpy.load': saved(lambda canary: Call(np.load, str(canary))),
    'object of a class': saved(lambda canary: Own()),
    'module': saved(lambda canary: torch.nn.Linear(1, 1)),
    'forged state of a class': assembled(name('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81}'
                                         + text('__class__') + name('os', 'system') + b'sb'),
    'state of a dict': assembled(b'}}' + text('__class__') + name('os', 'system') + b'sb'),
    'class as storage': assembled(items(text('storage'), name('os', 'system'), text('0'), text('cpu'), b'K\x01') + b'Q',
                                  _0=b'\0\0\0\0'),
    'extension code': assembled(b'\x82\x01'),
    'INST of protocol 0': assembled(b'(' + text('true') + b'ios\nsystem\n'),
    'function as state dict': whole(b'\x80\x02}' + text('state_dict') + name('os', 'abort') + b's.'),
    'TorchScript': write_torchscript,
    'legacy with a module': write_legacy_module,
    'legacy tar': write_legacy_tar,
    'legacy tar with a pipe': partial(write_legacy_tar, kind=tarfile.FIFOTYPE),
    'legacy tar with a link': partial(write_legacy_tar, kind=tarfile.LNKTYPE),
}

# Memory and time

N = 1 << 16


def write_deflated(path: Path, canary: Path) -> None:
    write_archive(path, content(b'N'), {'data/0': bytes(1 << 28)}, zipfile.ZIP_DEFLATED)


def write_overlapping(path: Path, canary: Path) -> None:
    """5,000 names of one record of a megabyte."""
    keys = [str(i) for i in range(5000)]
    write_archive(path, content(b'(' + b''.join(tensor(storage(key, 1 << 18), 0, [1 << 18], [1]) for key in keys)
                                + b'l'), {'data/0': bytes(1 << 20)})
    with zipfile.ZipFile(path, 'a') as archive:
        first = archive.getinfo('archive/data/0')
        for key in keys[1:]:
            copy = zipfile.ZipInfo(f'archive/data/{key}')
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.file_size = copy.compress_size = first.file_size
            archive.filelist.append(copy)
        archive._didModify = True


def write_directory(path: Path, canary: Path) -> None:
    """An archive of 200,000 empty members."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', content(b'N'))
        member = archive.getinfo('archive/data.pkl')
        archive.filelist.extend([member] * 200_000)
        archive._didModify = True


def nested(count: int, value: bytes = b'N') -> bytes:
    return value + b'\x85' * count


def doubled(count: int) -> bytes:
    """Lists of twice the list before: 2^count in the end."""
    levels = b']q\x00'
    for i in range(count):
        levels += b'](h' + bytes([i]) + b'h' + bytes([i]) + b'eq' + bytes([i + 1])
    return levels


LIST = b'](' + b'K\x01' * N + b'eq\x05'
MEMORY: dict[str, Write] = {
    'bytearray of 6 GiB': assembled(call(name('__builtin__', 'bytearray'), number(6 << 30))),
    'bytes of 6 GiB': assembled(call(name('__builtin__', 'bytes'), number(6 << 30))),
    'codecs of hex': assembled(LATIN(LATIN(text('41' * N), text('hex')), text('hex'))),
    'deflated members': write_deflated,
    'overlapping members': write_overlapping,
    'large directory': write_directory,
    'text of 4 GiB': assembled(b'X\xff\xff\xff\xff'),
    'number of 1 GiB': assembled(b'\x8b' + struct.pack('<i', 1 << 30)),
    'number in digits': assembled(b'I' + b'9' * (N << 4) + b'\n'),
    'expanded tensor': assembled(tensor(storage('0', 1), 0, [1 << 40], [0]), _0=bytes(4)),
    'one tensor many times': assembled(items(tensor(storage('0', N), 0, [N], [1]) + b'q\x01](' + b'h\x01' * N + b'e'),
                                       _0=bytes(4 * N)),
    'one view many times': assembled(
        b'](' + (tensor(storage('0', N << 4), 0, [N << 4], [1])) * 5000 + b'e', _0=bytes(N << 6)),
    'deep tuples': assembled(nested(1 << 20)),
    'deep tuples as key': whole(b'\x80\x02}' + text('state_dict') + b'}' + nested(1 << 20) + b'Nss.'),
    'deep lists by the memo': assembled(items(b']q\x01', b'](h\x01eq\x01' * (N >> 2))),
    'deep marks': assembled(b'(' * (N << 5)),
    'keys of one hash': whole(b'\x80\x02}' + text('state_dict') + b'}('
                              + b''.join(number(i * ((1 << 61) - 1)) + b'N' for i in range(1, N)) + b'us.'),
    'tuples as keys': whole(b'\x80\x02}' + text('state_dict') + b'}(' + (b'K\x01K\x02\x86N' * 9) + b'us.'),
    'lists in lists, twice each': assembled(items(doubled(30))),
    'meta in lists, twice each': whole(b'\x80\x02}(' + text('state_dict') + b'}' + text('weight')
                                       + call(name('collections', 'OrderedDict')) + b's' + text('meta') + b'}'
                                       + text('dataset_meta') + b'}' + text('classes') + items(doubled(30)) + b'ssu.'),
    'cycle': assembled(b']q\x01h\x01a'),
    'many empty sets': assembled(b'](' + call(name('__builtin__', 'set'), b']') * (N << 2) + b'e'),
    'sets of one list': assembled(items(LIST, b'](' + call(name('__builtin__', 'set'), b'h\x05') * 5000 + b'e')),
    'empty lists': assembled(b'](' + b']' * (N << 8) + b'e'),
    'texts of one text': assembled(items(text('a' * (N << 4)) + b'q\x01](' + LATIN(b'h\x01', text('latin1')) * 5000
                                         + b'e')),
    'names grown by getattr': assembled(items(name('a', 'b') + b'q\x01', (
        call(name('__builtin__', 'getattr'), b'h\x01', text('c' * 300)) + b'q\x01') * N)),
    'many tensors': assembled(items(storage('0', 0) + b'q\x01', b'](' + tensor(b'h\x01', 0, [0], [1]) * N + b'e'),
                              _0=b''),
    'many log buffers': assembled(items(array([0], 'f8', call(name('__builtin__', 'bytes'))) + b'q\x01', b'](' + (
        name('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81}(' + text('_log_history') + b'h\x01'
        + text('_count_history') + b'h\x01' + text('max_length') + b'K\x05ub') * N + b'e')),
    'versions many times': assembled(items(
        call(name('collections', 'OrderedDict')) + b'q\x01', b'}' + text('_metadata') + b'}(' + b''.join(
            text(str(i)) + b'}' for i in range(5000)) + b'usq\x02', b'h\x01' + b'h\x02b' * N)),
    'many integers': assembled(b'](' + (b'\x8a\xff' + b'\x7f' * 255) * N + b'e'),
    'many entries of the memo': assembled(items(b''.join(b'Nr' + struct.pack('<I', i) for i in range(N << 4)))),
    'many dicts': assembled(b'](' + b'}X\x01\0\0\0aNs' * (N << 2) + b'e'),
    'many ordered dicts': assembled(b'](' + call(name('collections', 'OrderedDict')) * (N << 2) + b'e'),
    'many names': assembled(b'](' + name('a' * 150, 'b' * 150) * N + b'e'),
    'device /dev/zero': lambda path, canary: path.symlink_to('/dev/zero'),
    'pipe': lambda path, canary: os.mkfifo(path),
}

# Forged tensors and arrays

BUFFER = LATIN(text('a' * 16), text('latin1'))
FORGED: dict[str, Write] = {
    'tensor over a short record': assembled(tensor(storage('0', 1 << 20), 0, [1 << 20], [1]), _0=bytes(16)),
    'size beyond the storage': assembled(tensor(storage('0', 4), 0, [1 << 20], [1]), _0=bytes(16)),
    'negative offset': assembled(tensor(storage('0', 4), -4096, [4], [1]), _0=bytes(16)),
    'offset beyond': assembled(tensor(storage('0', 4), 1 << 40, [4], [1]), _0=bytes(16)),
    'negative stride': assembled(tensor(storage('0', 4), 3, [4], [-1]), _0=bytes(16)),
    'negative size': assembled(tensor(storage('0', 4), 0, [-4], [1]), _0=bytes(16)),
    'sizes that overflow': assembled(tensor(storage('0', 4), 0, [1 << 33, 1 << 33], [1 << 33, 1]), _0=bytes(16)),
    'number beyond 64 bits': assembled(tensor(storage('0', 4), 1 << 70, [4], [1]), _0=bytes(16)),
    'more sizes than strides': assembled(tensor(storage('0', 4), 0, [2, 2], [1]), _0=bytes(16)),
    '1000 dimensions': assembled(tensor(storage('0', 4), 0, [1] * 1000, [1] * 1000), _0=bytes(16)),
    'missing record': assembled(tensor(storage('7', 4), 0, [4], [1]), _0=bytes(16)),
    'record outside of the archive': assembled(tensor(storage('../../../etc/passwd', 4), 0, [4], [1])),
    'ndarray over a buffer': assembled(call(name('numpy', 'ndarray'), items(number(1 << 30)), dtype('u1'), BUFFER,
                                            number(-(1 << 20)))),
    'array larger than its content': assembled(array([1 << 30], 'u1', BUFFER)),
    'array of objects': assembled(array([2], 'O8', BUFFER)),
    'array of records': assembled(array([1], 'V1000000000', BUFFER)),
    'array of a negative size': assembled(array([-1], 'u1', BUFFER)),
    'array without content': assembled(ARRAY),
    'scalar of a text': assembled(call(name('numpy.core.multiarray', 'scalar'), dtype('U4'), BUFFER)),
    'log buffer of texts': assembled(
        name('mmengine.logging.history_buffer', 'HistoryBuffer') + b')\x81}(' + text('_log_history') + text('a')
        + text('_count_history') + text('b') + text('max_length') + b'K\x05ub'),
}

# Damaged and foreign files


def healthy(path: Path) -> bytes:
    torch.save(dict(state_dict=dict(a=torch.arange(5000.), b=torch.ones(3)), meta=dict(epoch=1, iter=2),
                    message_hub=dict(loss=HistoryBuffer([1., 2.], [1, 1]))), path)
    return path.read_bytes()


def changed(change: Callable[[bytes], bytes]) -> Write:
    return lambda path, canary: path.write_bytes(change(healthy(path)))


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1:]


def safetensors(header: object, data: bytes = b'', size: int | None = None) -> Write:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path, canary: path.write_bytes(
        struct.pack('<Q', len(encoded) if size is None else size) + encoded + data)


def write_socket(path: Path, canary: Path) -> None:
    # The name of a socket is short; its folder's may be long.
    folder = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(folder)


def write_second_pickle(path: Path, canary: Path) -> None:
    healthy(path)
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('other/data.pkl', pickle.dumps(dict(state_dict=shell(canary)), 2))


FLOATS = dict(dtype='F32', shape=[4], data_offsets=[0, 16])
DAMAGED: dict[str, Write] = {
    'empty': lambda path, canary: path.write_bytes(b''),
    'first bytes': changed(lambda data: data[:100]),
    'half': changed(lambda data: data[:len(data) // 2]),
    'last byte missing': changed(lambda data: data[:-1]),
    'bit flipped in a tensor': changed(lambda data: flipped(data, data.index(b'\0\0\x80\x3f\0\0\0\x40') + 5)),
    'bit flipped in the pickle': changed(lambda data: flipped(data, data.index(b'state_dict') + 3)),
    'bit flipped in the directory': changed(lambda data: flipped(data, data.rindex(b'data.pkl'))),
    'zeros in between': changed(lambda data: data[:3000] + bytes(3000) + data[6000:]),
    'web page': lambda path, canary: path.write_text('<html>404</html>'),
    'pointer of git-lfs': lambda path, canary: path.write_text('version https://git-lfs.github.com/spec/v1\n'),
    'picture': lambda path, canary: path.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(100)),
    'list': lambda path, canary: torch.save([1, 2], path),
    'tensor': lambda path, canary: torch.save(torch.ones(2), path),
    'folder': lambda path, canary: path.mkdir(),
    'socket': write_socket,
    'link to itself': lambda path, canary: path.symlink_to(path.name),
    'healthy archive of another program': lambda path, canary: zipfile.ZipFile(path, 'w').writestr('a/b.txt', 'c'),
    'two pickles': write_second_pickle,
    'meta that is no dict': lambda path, canary: torch.save(dict(state_dict={}, meta=[1]), path),
    'data that is no dict': lambda path, canary: torch.save(dict(state_dict={}, meta=dict(dataset_meta='a')), path),
    'numbers in another order': lambda path, canary: write_archive(path, content(b'N'), dict(byteorder=b'big')),
    'pickle of nothing': whole(b'\x80\x02.'),
    'pickle without end': whole(content(b'N')[:-1]),
    'pickle and more': whole(content(b'N') + b'N'),
    'memo of nothing': assembled(b'h\x09'),
    'empty stack': assembled(b'RRRR'),
    'name that is no name': assembled(b'cos\x1b[2J\nsystem\n'),
    'text that is no text': assembled(b'X\x02\0\0\0\xff\xfe'),
    'tensor names to control a terminal': whole(b'\x80\x02}' + text('state_dict') + b'}' + text('\x1b[2J\n') + b'Nss.'),
    'tensor name of a megabyte': whole(b'\x80\x02}' + text('state_dict') + b'}' + text('a' * (1 << 20)) + b'Nss.'),
    'sparse tensor': saved(lambda canary: torch.eye(2).to_sparse()),
    'safetensors, header of 2^63 bytes': safetensors({}, size=1 << 63),
    'safetensors, header of 1 GiB': safetensors({}, size=1 << 30),
    'safetensors, truncated': safetensors(dict(a=FLOATS), bytes(8)),
    'safetensors, beyond the file': safetensors(dict(a=dict(FLOATS, shape=[1 << 40], data_offsets=[0, 1 << 42])),
                                                bytes(16)),
    'safetensors, overlapping': safetensors(dict(a=FLOATS, b=FLOATS), bytes(16)),
    'safetensors, names to control a terminal': safetensors({'\x1b[2J\n': FLOATS, '\x1b[1m\n': FLOATS}, bytes(16)),
    'safetensors, unknown type': safetensors(dict(a=dict(FLOATS, dtype='PICKLE')), bytes(16)),
    'safetensors, deep header': safetensors(b'{"a":' + b'[' * (1 << 20) + b']' * (1 << 20) + b'}'),
    'safetensors, deep metadata': safetensors(dict(__metadata__=dict(meta='[' * 10**5 + ']' * 10**5), a=FLOATS),
                                              bytes(16)),
    'safetensors, metadata that is no dict': safetensors(dict(__metadata__=dict(meta='[1]'), a=FLOATS), bytes(16)),
}

KINDS: dict[str, Write] = {**CODE, **MEMORY, **FORGED, **DAMAGED}
