# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The INT8 graph of a float32 graph: 8-bit tensors with the channels last, in onnxruntime's operators for them.

Feature maps stay in 8 bits, with the channels last, from one convolution to the next, so that a convolution is one
matrix product and nothing is transposed between them. Splitting, joining and reshaping only move bytes: all tensors
that such a node reads and writes have one scale. What has no 8-bit operator runs in float32, on what it needs alone.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from ._float_graph import TO_FIRST, TO_LAST, FloatGraph, attributes, needed_nodes, outer_names, read_names
from ._patterns import Statistics, channel_slice, find_attention, find_gelu, find_pieces, find_statistics

MICROSOFT = 'com.microsoft'
#: Activations that the 8 bits of an output compute by themselves, where they cut off.
CLAMPING = ('Relu', 'Clip')

#: Largest size in bytes to which a constant row is repeated.
MOST_REPEATED = 2**20


class Grid(NamedTuple):
    """What an 8-bit number q stands for: ``scale * (q - zero_point)``."""

    scale: float
    zero_point: int

    @classmethod
    def of_range(cls, low: float, high: float) -> 'Grid':
        """The grid of all numbers from ``low`` to ``high``, with 0 among them."""
        low, high = min(float(low), 0.), max(float(high), 0.)
        scale = (high - low) / 255 or 1.
        return cls(scale, int(round(-low / scale)))


#: Of Hard-Sigmoid gates: 8 bits cut off below 0 and above 1, as the gate does.
UNIT = Grid(1 / 255, 0)


class Store:
    """The values of one tensor, in the forms that the new graph has them in.

    Args:
        rank: Number of dimensions.
        forms: Names in the new graph: 'bytes' and 'last' have the channels last, 'first' has them after the batch.
        grid: What the bytes stand for.
    """

    def __init__(self, rank: int, forms: dict[str, str], grid: Grid | None = None) -> None:
        self.rank, self.forms, self.grid = rank, forms, grid


class Held(NamedTuple):
    """A tensor of the float32 graph: its values, and whether the float32 graph has its channels last."""

    store: Store
    last: bool


class Writer:
    """Nodes and constants of a new graph, whose names are not among those that are taken."""

    def __init__(self, taken: Iterable[str]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.names = dict.fromkeys(taken, 0)
        self.known: dict[tuple, str] = {}

    def name(self, base: str) -> str:
        """A name that is not yet in use."""
        self.names[base] = count = self.names.get(base, -1) + 1
        return f'{base}/{count}' if count else base

    def constant(self, value: np.ndarray, base: str) -> str:
        """Adds a constant; the same value of a base has one name."""
        tensor = numpy_helper.from_array(np.array(value, order='C'))
        content = (base, tensor.data_type, *tensor.dims, tensor.raw_data)
        if content not in self.known:
            self.known[content] = tensor.name = self.name(base)
            self.constants[tensor.name] = tensor
        return self.known[content]

    def node(self, op: str, inputs: Sequence[str], base: str, domain: str = '', outputs: int = 1,
             **attrs: object) -> list[str]:
        """Adds a node; returns the names of its outputs."""
        names = [self.name(f'{base}/{op}') for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=names[0], domain=domain, **attrs))
        return names

    def grid(self, grid: Grid) -> list[str]:
        """Scale and zero point as constants."""
        return [self.constant(np.float32(grid.scale), 'scale'), self.constant(np.uint8(grid.zero_point), 'zero_point')]


class Int8Graph:
    """Writes the INT8 graph of a float32 graph.

    Args:
        graph: The float32 graph.
        grid: Returns the grid of a tensor of the float32 graph by name.
        float_layers: Names of layers, see :func:`layer_name`, that stay in
            float32.
        weight_bits: Bits of a weight, 7 or 8.
        alone: Whether the network stays in float32, and each layer is
            computed a second time in 8 bits, beside it, see
            :attr:`alone`.
    """

    def __init__(self, graph: FloatGraph, grid: Callable[[str], Grid], float_layers: Sequence[str] = (),
                 weight_bits: int = 7, alone: bool = False) -> None:
        self.graph, self.grid, self.float_layers, self.compares = graph, grid, set(float_layers), alone
        #: For each output of a layer: the layer, the output's name in the float32 graph, what the layer alone gives.
        self.alone: list[tuple[str, str, Held]] = []
        self.most = 2**(weight_bits - 1) - (weight_bits == 8)
        self.out = Writer([*graph.producer, *graph.constants, *(value.name for value in graph.model.graph.input)])
        self.held: dict[str, Held] = {}
        self.done: set[int] = set()
        self.layers: list[str] = []
        #: Pieces of the output of a layer by its input: weights, biases, and the piece.
        self.pieces: dict[int, list[tuple[np.ndarray, np.ndarray, str]]] = {}
        self.named: set[str] = set()
        for value in graph.model.graph.input:
            if value.name not in graph.constants:
                self.held[value.name] = Held(Store(graph.rank(value.name) or 0, {'first': value.name}), False)
        self.gelus: dict[int, str] = {}
        for node in graph.nodes:
            found = find_gelu(graph, node) if node.op_type == 'Erf' else None
            if found is not None:
                name, (*inner, end) = found
                self.done.update(map(id, inner))
                self.gelus[id(end)] = name
        for node in graph.nodes:
            if id(node) not in self.done:
                lower = getattr(self, f'_lower_{node.op_type.lower()}', None)
                layers, done, held = len(self.layers), set(self.done), set(self.held)
                if node.domain not in ('', 'ai.onnx') or lower is None or not lower(node):
                    self._copy(node)
                elif alone and len(self.layers) > layers:
                    self.alone += [(self.layers[-1], name, self.held.pop(name)) for name in set(self.held) - held]
                    for kept, _ in self.held.values():
                        kept.forms.pop('bytes', None)
                    self.done = done
                    self._copy(node)

    def comparison(self) -> tuple[onnx.ModelProto, list[str]]:
        """A model that gives, for each of :attr:`alone`, float32 values, and those in 8 bits; and the layers' names."""
        outputs = []
        for _, name, held in self.alone:
            self._give(name)
            new = self._last(held.store, name) if held.last else self._first(held.store, name)
            outputs += [onnx.ValueInfoProto(name=name), onnx.ValueInfoProto(name=new)]
        return self._model(outputs), [layer for layer, *_ in self.alone]

    def model(self) -> onnx.ModelProto:
        """The model of the new graph, with inputs, outputs and metadata of the old one."""
        for value in self.graph.model.graph.output:
            self._give(value.name)
        return self._model(self.graph.model.graph.output)

    def _model(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        old = self.graph.model
        nodes = needed_nodes(self.out.nodes, [value.name for value in outputs])
        needed = set().union(*map(read_names, nodes))
        constants = [tensor for name, tensor in self.out.constants.items() if name in needed]
        graph = helper.make_graph(nodes, old.graph.name, old.graph.input, outputs, constants)
        domains = {node.domain for node in nodes} - {'', 'ai.onnx'}
        opsets = [helper.make_opsetid('', self.graph.opset), *(helper.make_opsetid(name, 1) for name in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=min(old.ir_version, 10),
                                  producer_name='partialnet_mm')
        model.metadata_props.extend(old.metadata_props)
        return model

    # Forms of tensors

    def _copy(self, node: NodeProto) -> None:
        """Keeps a node as it is, in float32."""
        if node.op_type == 'Shape' and self._copy_shape(node):
            return
        new = NodeProto()
        new.CopyFrom(node)
        del new.input[:]
        new.input.extend(self._float(name) if name else '' for name in node.input)
        for attribute in new.attribute:
            for graph in (attribute.g, *attribute.graphs):
                for name in outer_names(graph):
                    self._give(name)
        self.out.nodes.append(new)
        # Layouts matter for what may be quantized later: a layer's input says what it is.
        last = next((self.held[name].last for name in node.input
                     if name in self.held and self.graph.rank(name) == self.graph.rank(node.output[0])), False)
        for name in node.output:
            self.held[name] = Held(Store(self.graph.rank(name) or 0, {'last' if last else 'first': name}), last)

    def _give(self, name: str) -> None:
        """Gives a float32 tensor under its old name, as subgraphs and callers read it."""
        new = self._float(name)
        if new != name and name not in self.named:
            self.out.nodes.append(helper.make_node('Identity', [new], [name]))
            self.named.add(name)

    def _copy_shape(self, node: NodeProto) -> bool:
        """The shape of a tensor that is held in another order of its dimensions."""
        held = self.held.get(node.input[0])
        if held is None or ('last' if held.last else 'first') in held.store.forms:
            return False
        rank, given = held.store.rank, attributes(node)
        form = next(iter(held.store.forms))
        order = range(rank)
        if held.last != (form != 'first'):
            order = TO_FIRST[rank] if form != 'first' else TO_LAST[rank]
        wanted = list(order)[given.get('start', 0):given.get('end')]
        shape = self.out.node('Shape', [held.store.forms[form]], node.output[0])
        indices = self.out.constant(np.array(wanted, dtype=np.int64), 'indices')
        self._put(node.output[0], Store(1, {'first': self.out.node('Gather', [*shape, indices], node.output[0])[0]}))
        return True

    def _put(self, name: str, store: Store, last: bool = False) -> None:
        self.held[name] = Held(store, last)

    def _float(self, name: str) -> str:
        """A tensor as the float32 graph has it."""
        if name in self.graph.constants:
            tensor = numpy_helper.from_array(self.graph.constants[name], name)
            self.out.constants.setdefault(name, tensor)
            return name
        store, last = self.held[name]
        return self._last(store, name) if last else self._first(store, name)

    def _last(self, store: Store, base: str) -> str:
        """The values in float32 with the channels last."""
        forms = store.forms
        if 'last' not in forms and 'bytes' in forms:
            forms['last'], = self.out.node('DequantizeLinear', [forms['bytes'], *self.out.grid(store.grid)], base)
        elif 'last' not in forms:
            forms['last'], = self.out.node('Transpose', [forms['first']], base, perm=TO_LAST[store.rank])
        return forms['last']

    def _first(self, store: Store, base: str) -> str:
        """The values in float32 with the channels after the batch."""
        forms = store.forms
        if 'first' not in forms and 'last' in forms:
            forms['first'], = self.out.node('Transpose', [forms['last']], base, perm=TO_FIRST[store.rank])
        elif 'first' not in forms:
            moved = self.out.node('Transpose', [forms['bytes']], base, perm=TO_FIRST[store.rank])
            forms['first'], = self.out.node('DequantizeLinear', [*moved, *self.out.grid(store.grid)], base)
        return forms['first']

    def _bytes(self, name: str, grid: Grid | None = None) -> tuple[str, Grid]:
        """The values in 8 bits with the channels last, and their grid: a new one only where there are no bytes yet."""
        store = self.held[name].store
        if 'bytes' not in store.forms:
            store.grid = grid or self.grid(name)
            form = 'last' if 'last' in store.forms else 'first'
            new = self.out.node('QuantizeLinear', [store.forms[form], *self.out.grid(store.grid)], name)
            if form == 'first' and store.rank > 2:
                new = self.out.node('Transpose', new, name, perm=TO_LAST[store.rank])
            store.forms['bytes'], = new
        return store.forms['bytes'], store.grid

    def _set_layout(self, name: str, last: bool, rank: int = 0) -> None:
        """Says which dimension of a tensor of the float32 graph is the channels, and its rank where it is unknown."""
        store, assumed = self.held[name]
        if assumed != last or not store.rank:
            store = Store(store.rank or rank, {'last' if last else 'first': self._float(name)})
            self._put(name, store, last)

    def _has_bytes(self, name: str) -> bool:
        return name in self.held and 'bytes' in self.held[name].store.forms

    def _channel_axis(self, name: str) -> int:
        return self.held[name].store.rank - 1 if self.held[name].last else 1

    # Nodes that move values

    def _lower_transpose(self, node: NodeProto) -> bool:
        rank, perm = self.graph.rank(node.input[0]), attributes(node).get('perm')
        if rank not in TO_LAST or node.input[0] not in self.held or not self.graph.is_float(node.input[0]):
            return False
        store, last = self.held[node.input[0]]
        if not last and perm == TO_LAST[rank]:
            self._put(node.output[0], store, True)
            return True
        if last and perm == TO_FIRST[rank]:
            self._put(node.output[0], store, False)
            return True
        # Nothing is known yet of the layout of what no layer has computed.
        if 'bytes' not in store.forms and len(store.forms) == 1 and perm == (TO_FIRST if not last else TO_LAST)[rank]:
            name, = store.forms.values()
            self._put(node.output[0], Store(rank, {'first' if last else 'last': name}), last)
            return True
        return False

    def _lower_reshape(self, node: NodeProto) -> bool:
        """Feature maps as tokens, (B, C, H, W) as (B, C, L), and back."""
        if self._attend(node):
            return True
        name, out = node.input[0], node.output[0]
        ranks = self.graph.rank(name), self.graph.rank(out)
        if name not in self.held or ranks not in ((4, 3), (3, 4)):
            return False
        store, last = self.held[name]
        before, after = self.graph.shapes[name], self.graph.shapes[out]
        axis = -1 if last else 1
        if not (isinstance(before[axis], int) and before[axis] == after[axis] and before[0] and before[0] == after[0]):
            return False
        if last and not store.forms.keys() & {'bytes', 'last'}:
            self._float(name)
        elif 'bytes' not in store.forms and 'last' not in store.forms:
            return False
        form = 'bytes' if 'bytes' in store.forms else 'last'
        if ranks == (4, 3):
            shape = self.out.constant(np.array([0, -1, before[axis]], dtype=np.int64), 'shape')
        elif last:
            shape = self._float(node.input[1])
        elif node.input[1] in self.graph.constants:
            shape = self.out.constant(self.graph.constants[node.input[1]][TO_LAST[4]], 'shape')
        else:
            order = self.out.constant(np.array(TO_LAST[4], dtype=np.int64), 'indices')
            shape, = self.out.node('Gather', [self._float(node.input[1]), order], out)
        new, = self.out.node('Reshape', [store.forms[form], shape], out)
        self._put(out, Store(ranks[1], {form: new}, store.grid), last)
        return True

    def _attend(self, node: NodeProto) -> bool:
        """Attention of all heads as one operator, where it ends by joining the heads."""
        found = find_attention(self.graph, node)
        if found is None:
            return False
        store = self.held[found.tokens].store
        width = self.graph.shapes[node.output[0]][2]
        sizes = self.out.constant(np.array([width] * 3, np.int64), 'sizes')
        parts = self.out.node('Split', [self._last(store, found.tokens), sizes], node.output[0], outputs=3, axis=2)
        new, = self.out.node('MultiHeadAttention', [*parts, '', '', self._float(found.bias)], node.output[0], MICROSOFT,
                             num_heads=found.heads, scale=found.scale)
        self._put(node.output[0], Store(3, {'last': new}), True)
        return True

    def _lower_split(self, node: NodeProto) -> bool:
        name, given = node.input[0], attributes(node)
        if not self._has_bytes(name) or given.get('axis', 0) % self.held[name].store.rank != self._channel_axis(name):
            return False
        store, last = self.held[name]
        sizes = [self.graph.shapes[out][self._channel_axis(name)] for out in node.output]
        if not all(isinstance(size, int) for size in sizes):
            return False
        self._split(name, sizes, list(node.output))
        return True

    def _split(self, name: str, sizes: Sequence[int], outputs: Sequence[str]) -> None:
        store, last = self.held[name]
        parts = self.out.node('Split', [store.forms['bytes'], self.out.constant(np.array(sizes, np.int64), 'sizes')],
                              outputs[0], outputs=len(outputs), axis=store.rank - 1)
        for out, part in zip(outputs, parts):
            self._put(out, Store(store.rank, {'bytes': part}, store.grid), last)

    def _lower_slice(self, node: NodeProto) -> bool:
        """Slices of the channels; those that share out all channels are one split."""
        name = node.input[0]
        ours = self._channel_slice(node)
        if ours is None:
            return False
        siblings = {}
        for other in self.graph.consumers[name]:
            if other.op_type == 'Slice' and (found := self._channel_slice(other)) is not None:
                siblings[found] = other
        pieces = sorted(siblings)
        channels = self.graph.shapes[name][self._channel_axis(name)]
        if [low for low, _ in pieces] == [0, *(high for _, high in pieces[:-1])] and pieces[-1][1] == channels:
            self._split(name, [high - low for low, high in pieces], [siblings[piece].output[0] for piece in pieces])
            self.done.update(id(node) for node in siblings.values())
            return True
        store, last = self.held[name]
        bounds = [self.out.constant(np.array([value], np.int64), 'bound') for value in (*ours, store.rank - 1)]
        new, = self.out.node('Slice', [store.forms['bytes'], *bounds], node.output[0])
        self._put(node.output[0], Store(store.rank, {'bytes': new}, store.grid), last)
        return True

    def _channel_slice(self, node: NodeProto) -> tuple[int, int] | None:
        if not self._has_bytes(node.input[0]):
            return None
        return channel_slice(self.graph, node, self._channel_axis(node.input[0]))

    def _lower_concat(self, node: NodeProto) -> bool:
        names = list(node.input)
        if not any(map(self._has_bytes, names)) or any(name not in self.held for name in names):
            return False
        first = next(filter(self._has_bytes, names))
        store, last = self.held[first]
        axis = attributes(node)['axis'] % store.rank
        if axis != self._channel_axis(first) or any(self.held[name].last != last for name in names):
            return False
        found = [self._bytes(name) for name in names]
        if len({grid for _, grid in found}) > 1:
            return False
        new, = self.out.node('Concat', [name for name, _ in found], node.output[0], axis=store.rank - 1)
        self._put(node.output[0], Store(store.rank, {'bytes': new}, found[0][1]), last)
        return True

    # Layers

    def _follow(self, name: str) -> tuple[str, bool, NodeProto | None]:
        """The end of a chain of transpositions of a tensor, whether they moved the channels, and what reads the end."""
        moved, node = False, self.graph.only_consumer(name)
        while node is not None and node.op_type == 'Transpose' and attributes(node).get('perm') in (
                TO_LAST[4], TO_FIRST[4]):
            self._passed.append(node)
            name, moved = node.output[0], not moved
            node = self.graph.only_consumer(name)
        return name, moved, node

    def _with_activation(self, name: str, last: bool,
                         kinds: Sequence[str] = CLAMPING) -> tuple[str, bool, NodeProto | None]:
        """The tensor that a layer gives with the activation that its output can take over, its layout, and that."""
        self._passed: list[NodeProto] = []
        end, moved, node = self._follow(name)
        if node is not None and node.op_type in kinds and (
                node.op_type != 'Clip' or all(other in self.graph.constants for other in node.input[1:] if other)):
            self.done.update(id(node) for node in (*self._passed, node))
            return node.output[0], last != moved, node
        return name, last, None

    def _is_layer(self, node: NodeProto, weight: str, bias: str | None = None) -> bool:
        name = layer_name(node, weight, bias)
        self.layers.append(name)
        return name not in self.float_layers

    def _weights(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights in 8 bits and the scale of each output, the first dimension."""
        largest = np.abs(weight).reshape(len(weight), -1).max(1)
        scale = np.where(largest > 0, largest / self.most, 1).astype(np.float64)
        shape = (-1, *[1] * (weight.ndim - 1))
        return np.clip(np.rint(weight / scale.reshape(shape)), -self.most, self.most).astype(np.int8), scale

    def _lower_conv(self, node: NodeProto) -> bool:
        weight = self.graph.constants.get(node.input[1])
        given, name = attributes(node), node.input[0]
        bias_name = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if (weight is None or weight.ndim != 4 or given.get('auto_pad', b'NOTSET') != b'NOTSET'
                or (bias_name and bias_name not in self.graph.constants)
                or not self._is_layer(node, node.input[1], bias_name)):
            return False
        bias = np.zeros(len(weight)) if bias_name is None else self.graph.constants[bias_name]
        given = {key: value for key, value in given.items() if key != 'auto_pad'}
        self._convolve(name, weight, bias, node.output[0], False, given)
        return True

    def _lower_matmul(self, node: NodeProto) -> bool:
        weight, name = self.graph.constants.get(node.input[1]), node.input[0]
        if weight is None or weight.ndim != 2 or name not in self.held:
            return False
        held, out = self.held[name], node.output[0]
        bias, bias_name = np.zeros(weight.shape[1], np.float32), None
        add = self.graph.only_consumer(out)
        if add is not None and add.op_type == 'Add':
            found = self.graph.constant_input(add)
            if found is not None and found[0].shape == bias.shape:
                bias, out = found[0], add.output[0]
                bias_name = next(other for other in add.input if other in self.graph.constants)
        if not self._is_layer(node, node.input[1], bias_name):
            return False
        if bias_name is not None:
            self.done.add(id(add))
        if held.store.rank == 4 and held.last:
            self._convolve(name, weight.T[:, :, None, None], bias, out, True, dict(kernel_shape=[1, 1]))
        else:
            self._multiply(name, weight, bias, out)
        return True

    def _lower_gemm(self, node: NodeProto) -> bool:
        weight, given = self.graph.constants.get(node.input[1]), attributes(node)
        statistics = find_statistics(self.graph, node)
        if statistics is not None and self._gate(node, statistics):
            return True
        bias_name = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if (weight is None or given.get('transA') or given.get('alpha', 1) != 1 or given.get('beta', 1) != 1
                or (bias_name and bias_name not in self.graph.constants) or min(weight.shape) < 16
                or not self._is_layer(node, node.input[1], bias_name)):
            return False
        weight = weight.T if given.get('transB') else weight
        bias = np.zeros(weight.shape[1], np.float32) if bias_name is None else self.graph.constants[bias_name]
        self._multiply(node.input[0], weight, np.broadcast_to(bias, (weight.shape[1], )), node.output[0])
        return True

    def _gate(self, node: NodeProto, statistics: Statistics) -> bool:
        """A gate from the mean and the deviation of each channel, from one pass over the bytes of the feature map."""
        name, given = statistics.values, attributes(node)
        last = self.held[name].last
        bias_name = node.input[2] if len(node.input) > 2 and node.input[2] else None
        end, passed = self.graph.only_consumer(node.output[0]), []
        while end is not None and end.op_type in ('Unsqueeze', 'Reshape'):
            passed.append(end)
            end = self.graph.only_consumer(end.output[0])
        if (not (self._has_bytes(name) or self.compares) or last != (self.graph.rank(name) == 3)
                or given.get('transA') or end is None or end.op_type != 'HardSigmoid'
                or self.graph.rank(end.output[0]) != 4 or not self._is_layer(node, node.input[1], bias_name)):
            return False
        weight = self.graph.constants[node.input[1]].astype(np.float64)
        weight = weight.T if given.get('transB') else weight
        bias = np.zeros(weight.shape[1]) if bias_name is None else self.graph.constants[bias_name].astype(np.float64)
        slope = attributes(end)
        weight, bias = weight * slope.get('alpha', .2), bias * slope.get('alpha', .2) + slope.get('beta', .5)

        out, write = end.output[0], self.out.node
        count = self.graph.constants.get(statistics.count)
        sides = self.graph.shapes[name][1:2] if last else self.graph.shapes[name][2:]
        length = int(np.prod(sides)) if all(isinstance(side, int) for side in sides) else None
        channels = weight.shape[0] // 2
        # One image needs no dimension of batches, and a product of matrices has a bias of its own.
        single = self.graph.shapes[name][0] == 1
        shape = self.out.constant(np.array([-1, channels] if single else [0, 1, -1, channels], np.int64), 'shape')
        values, grid = self._bytes(name)
        values = write('DequantizeLinear', [*write('Reshape', [values, shape], out), *self.out.grid(grid)], out)
        squares = write('Mul', values * 2, out)
        mean_weight, std_weight = weight[0::2], weight[1::2]
        if length is not None and count is not None:
            # The mean is scaled so that its square can be taken from the mean of the squares.
            factor = float(np.sqrt(length * count))
            ones = np.ones((1, length) if single else (1, 1, 1, length), np.float32)
            mean = write('MatMul', [self.out.constant(ones / np.float32(factor), 'mean'), *values], out)
            square = write('MatMul', [self.out.constant(ones / count.astype(np.float32), 'mean'), *squares], out)
            squared = write('Mul', mean * 2, out)
            mean_weight = mean_weight * (factor / length)
        else:
            indices = self.out.constant(np.array([0 if single else 2], np.int64), 'indices')
            size = write('Gather', [*write('Shape', values, out), indices], out)
            length_float = write('Cast', size, out, to=onnx.TensorProto.FLOAT)
            row = write('Concat', [self.out.constant(np.ones(1 if single else 3, np.int64), 'shape'),
                                   *size], out, axis=0)
            one = helper.make_tensor('one', onnx.TensorProto.FLOAT, [1], [1])
            ones = write('ConstantOfShape', row, out, value=one)
            mean = write('Div', [*write('MatMul', [*ones, *values], out), *length_float], out)
            count_float = self._float(statistics.count)
            square = write('Div', [*write('MatMul', [*ones, *squares], out), count_float], out)
            ratio = write('Div', [*length_float, count_float], out)
            squared = write('Mul', [*write('Mul', mean * 2, out), *ratio], out)
        variance = write('Relu', write('Sub', [*square, *squared], out), out)
        both = write('Concat', [*mean, *write('Sqrt', variance, out)], out, axis=1 if single else 3)
        weight = np.concatenate((mean_weight, std_weight)).astype(np.float32)
        parameters = [self.out.constant(weight, f'{out}/weight'),
                      self.out.constant(bias.astype(np.float32), f'{out}/bias')]
        if single:
            four = self.out.constant(np.array([1, 1, 1, -1], np.int64), 'shape')
            gate = write('Reshape', [*write('Gemm', [*both, *parameters], out), four], out)
        else:
            gate = write('Add', [*write('MatMul', [*both, parameters[0]], out), parameters[1]], out)
        self._put(out, Store(4, {'bytes': write('QuantizeLinear', [*gate, *self.out.grid(UNIT)], out)[0]}, UNIT), False)
        self.done.update(id(other) for other in (*passed, end))
        return True

    def _multiply(self, name: str, weight: np.ndarray, bias: np.ndarray, out: str) -> None:
        """A linear layer whose output is float32."""
        self._set_layout(name, True)
        values, grid = self._bytes(name)
        quantized, scale = self._weights(weight.T)
        new, = self.out.node(
            'MatMulIntegerToFloat',
            [values, self.out.constant(quantized.T, f'{out}/weight'),
             self.out.constant(np.float32(grid.scale), 'scale'),
             self.out.constant(scale.astype(np.float32), f'{out}/weight_scale'),
             self.out.constant(np.uint8(grid.zero_point), 'zero_point'),
             self.out.constant(np.zeros(len(scale), np.int8), 'weight_zero_point'),
             self.out.constant(bias.astype(np.float32), f'{out}/bias')], out, MICROSOFT)
        self._put(out, Store(self.held[name].store.rank, {'last': new}), True)

    def _convolve(self, name: str, weight: np.ndarray, bias: np.ndarray, out: str, last: bool,
                  given: Mapping[str, object]) -> None:
        """A convolution and the activation that follows it."""
        self._set_layout(name, last, 4)
        pieces = find_pieces(self.graph, out)
        if pieces is not None and given.get('group', 1) == 1:
            # A product for each piece costs less than to divide its output, and each has a grid of its own.
            for low, high, node, piece in pieces:
                self.done.add(id(node))
                self._convolve_piece(name, weight[low:high], bias[low:high], piece, last, given)
        else:
            self._convolve_piece(name, weight, bias, out, last, given)

    def _shorter(self, name: str, weight: np.ndarray, bias: np.ndarray,
                 alpha: float) -> tuple[str, np.ndarray, np.ndarray]:
        """The logit of a gate, from a piece of a layer's output that it is a function of, with a quarter of the inputs.

        PAT_sp's logit is a linear function of the channels that its gate weights. Folding makes it one of the hidden
        layer, which has four times as many.
        """
        wanted = weight.reshape(-1)
        # The error of the gate by the rounding of what it is computed from.
        least = max(UNIT.scale, 2 * alpha * self._bytes(name)[1].scale * np.linalg.norm(wanted) / 12**0.5)
        for rows, offset, piece in self.pieces.get(id(self.held[name].store), ()):
            found, *_ = np.linalg.lstsq(rows.T, wanted, rcond=None)
            exact = np.linalg.norm(rows.T @ found - wanted) < 1e-4 * np.linalg.norm(wanted)
            if exact and alpha * self._bytes(piece)[1].scale * np.linalg.norm(found) / 12**0.5 < least:
                return piece, found.reshape(1, -1, 1, 1), bias - found @ offset
        return name, weight, bias

    def _convolve_piece(self, name: str, weight: np.ndarray, bias: np.ndarray, out: str, last: bool,
                        given: Mapping[str, object]) -> None:
        out, last, activation = self._with_activation(out, last, (*CLAMPING, 'HardSigmoid'))
        weight, bias = weight.astype(np.float64), bias.astype(np.float64)
        if not self.compares and weight[0].size == weight.shape[1]:
            if activation is None:
                pieces = self.pieces.setdefault(id(self.held[name].store), [])
                pieces.append((weight.reshape(weight.shape[:2]), bias, out))
            elif activation.op_type == 'HardSigmoid' and len(weight) == 1:
                name, weight, bias = self._shorter(name, weight, bias, attributes(activation).get('alpha', .2))
        values, grid = self._bytes(name)
        if activation is not None and activation.op_type == 'HardSigmoid':
            slope = attributes(activation)
            alpha, beta = slope.get('alpha', .2), slope.get('beta', .5)
            weight, bias, new_grid = weight * alpha, bias * alpha + beta, UNIT
        else:
            new_grid = self.grid(out)
        quantized, scale = self._weights(weight)
        bias = np.clip(np.rint(bias / (grid.scale * scale)), -2**31, 2**31 - 1).astype(np.int32)
        new, = self.out.node(
            'QLinearConv',
            [values, *self.out.grid(grid), self.out.constant(quantized, f'{out}/weight'),
             self.out.constant(scale.astype(np.float32), f'{out}/weight_scale'),
             self.out.constant(np.zeros(len(scale), np.int8), 'weight_zero_point'), *self.out.grid(new_grid),
             self.out.constant(bias, f'{out}/bias')], out, MICROSOFT, channels_last=1, **given)
        self._put(out, Store(4, {'bytes': new}, new_grid), last)

    def _gelu(self, name: str, out: str) -> None:
        """A GELU, in float32: onnxruntime has no operator in 8 bits for it."""
        store, last = self.held[name]
        last_form = 'bytes' in store.forms or last
        values = self._last(store, name) if last_form else self._first(store, name)
        new, = self.out.node('Gelu', [values], out, MICROSOFT)
        self._put(out, Store(store.rank, {'last' if last_form else 'first': new}), last)

    def _lower_add(self, node: NodeProto) -> bool:
        return self._lower_binary(node, 'QLinearAdd')

    def _lower_mul(self, node: NodeProto) -> bool:
        if id(node) in self.gelus:
            self._gelu(self.gelus[id(node)], node.output[0])
            return True
        return self._lower_binary(node, 'QLinearMul')

    def _lower_binary(self, node: NodeProto, op: str) -> bool:
        if self.graph.rank(node.output[0]) != 4 or not any(map(self._has_bytes, node.input)):
            return False
        first = next(filter(self._has_bytes, node.input))
        last = self.held[first].last
        operands = []
        for name in node.input:
            if name in self.graph.constants:
                value = self.graph.constants[name].astype(np.float32)
                value = value.reshape(*[1] * (4 - value.ndim), *value.shape)
                if not last:
                    value = value.transpose(TO_LAST[4])
                full = self.graph.shapes[node.output[0]]
                full = [full[axis] for axis in TO_LAST[4]] if not last else list(full)
                # Rows that are repeated add slowly, those that are stored at full size do not.
                if all(isinstance(dim, int) for dim in full) and np.prod(full) < MOST_REPEATED:
                    value = np.broadcast_to(value, full)
                grid = Grid.of_range(value.min(), value.max())
                quantized = np.clip(np.rint(value / grid.scale) + grid.zero_point, 0, 255).astype(np.uint8)
                operands += [self.out.constant(quantized, f'{name}/bytes'), *self.out.grid(grid)]
                continue
            held = self.held[name]
            if held.store.rank != 4 or held.last != last:
                return False
            producer = self.graph.producer.get(name)
            while producer is not None and producer.op_type == 'Transpose':
                producer = self.graph.producer.get(producer.input[0])
            gate = producer is not None and producer.op_type in ('HardSigmoid', 'Sigmoid')
            values, grid = self._bytes(name, UNIT if gate else None)
            operands += [values, *self.out.grid(grid)]
        out, last, _ = self._with_activation(node.output[0], last)
        grid = self.grid(out)
        new, = self.out.node(op, [*operands, *self.out.grid(grid)], out, MICROSOFT)
        self._put(out, Store(4, {'bytes': new}, grid), last)
        return True

    def _lower_globalaveragepool(self, node: NodeProto) -> bool:
        name, out = node.input[0], node.output[0]
        if not self._has_bytes(name) or self.held[name].store.rank != 4:
            return False
        values, grid = self._bytes(name)
        new_grid = self.grid(out)
        new, = self.out.node('QLinearGlobalAveragePool', [values, *self.out.grid(grid), *self.out.grid(new_grid)], out,
                             MICROSOFT, channels_last=1)
        self._put(out, Store(4, {'bytes': new}, new_grid), self.held[name].last)
        return True

    def _lower_reducemean(self, node: NodeProto) -> bool:
        name, axes = node.input[0], self.graph.axes(node)
        if name not in self.held or axes is None or not attributes(node).get('keepdims', 1):
            return False
        if self.held[name].store.rank == 4 and axes == ([1, 2] if self.held[name].last else [2, 3]):
            return self._lower_globalaveragepool(node)
        return False


def layer_name(node: NodeProto, weight: str, bias: str | None) -> str:
    """The name of a layer: of its parameters in the network, or of its node."""
    for name in filter(None, (weight, bias)):
        if name.endswith(('.weight', '.bias')):
            return name.rpartition('.')[0]
    return node.name
