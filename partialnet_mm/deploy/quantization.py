# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Static INT8 quantization of ONNX models for onnxruntime."""
import difflib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from ._float_graph import FloatGraph
from ._int8_graph import Grid, Int8Graph
from ._patterns import find_pieces

#: Nodes that only move values, so that all they read and write has one grid.
MOVING = ('Concat', 'Split', 'Slice', 'Transpose', 'Reshape', 'Pad')


def quantize(model: onnx.ModelProto,
             batches: Iterable[Mapping[str, np.ndarray]],
             float_layers: Sequence[str] = (),
             reduce_range: bool = True) -> onnx.ModelProto:
    """Quantizes a float32 model to INT8, by the ranges that its activations have on calibration images.

    The result runs in onnxruntime on a CPU. Layers are convolutions and linear
    layers with constant weights; what lies between them is computed in 8 bits
    as well where onnxruntime has an operator for it.

    Args:
        model: A float32 model of standard operators, which stays as it is.
        batches: Inputs by name for each calibration run.
        float_layers: Names of layers that stay in float32, of those in
            :attr:`Quantizer.layers`. Defaults to none.
        reduce_range: Whether weights have 7 bits. With 8 bits, processors
            without VNNI saturate sums of two products. Defaults to True.

    Returns:
        The quantized model, with the metadata of the old one.

    Raises:
        ValueError: If there is no calibration image, a layer is unknown, or
            the model has no layer to quantize.
    """
    return Quantizer(model, batches, reduce_range).quantized(float_layers)


class Quantizer:
    """A float32 model and the ranges of its activations, see :func:`quantize`."""

    def __init__(self, model: onnx.ModelProto, batches: Iterable[Mapping[str, np.ndarray]],
                 reduce_range: bool = True) -> None:
        self._graph, self._bits = FloatGraph(model), 7 if reduce_range else 8
        needed: dict[str, None] = {}

        def record(name: str) -> Grid:
            needed[name] = None
            return Grid(1., 0)

        #: Names of the layers that can be quantized, in the order of the network.
        self.layers = list(dict.fromkeys(Int8Graph(self._graph, record).layers))
        if not self.layers:
            raise ValueError('the model has no convolution and no linear layer with constant weights')
        Int8Graph(self._graph, record, alone=True)
        Int8Graph(self._graph, record, self.layers)
        ranges = activation_ranges(self._graph, list(needed), batches)
        self._groups = _groups(self._graph)
        self._ranges: dict[str, tuple[float, float]] = {}
        for name in needed:
            low, high = self._ranges.get(self._groups[name], ranges[name])
            self._ranges[self._groups[name]] = min(low, ranges[name][0]), max(high, ranges[name][1])

    def _grid(self, name: str) -> Grid:
        return Grid.of_range(*self._ranges[self._groups[name]])

    def quantized(self, float_layers: Sequence[str] = ()) -> onnx.ModelProto:
        """The quantized model; some layers may stay in float32."""
        unknown = sorted(set(float_layers) - set(self.layers))
        if unknown:
            near = difflib.get_close_matches(unknown[0], self.layers, n=3)
            raise ValueError(f'the model has no layer {unknown[0]!r}' + (f'; near it are {near}' if near else ''))
        return Int8Graph(self._graph, self._grid, float_layers, self._bits).model()

    def layer_errors(self, batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
        """How much of its output's power each layer changes when it alone is in 8 bits, the largest first."""
        model, layers = Int8Graph(self._graph, self._grid, weight_bits=self._bits, alone=True).comparison()
        names = [output.name for output in model.graph.output]
        pairs = list(zip(names[::2], names[1::2]))
        model.graph.node.extend(helper.make_node('Sub', [given, wanted], [f'{given}/error']) for wanted, given in pairs)
        _summarize(model, [(name, 'ReduceSumSquare') for wanted, given in pairs for name in (f'{given}/error', wanted)])
        session = _session(model)
        noise, power = dict.fromkeys(layers, 0.), dict.fromkeys(layers, 0.)
        for batch in batches:
            outputs = iter(session.run(None, dict(batch)))
            for layer, error, whole in zip(layers, outputs, outputs):
                noise[layer] += float(error)
                power[layer] += float(whole)
        errors = {layer: noise[layer] / power[layer] if power[layer] else 0. for layer in noise}
        return dict(sorted(errors.items(), key=lambda item: -item[1]))


def activation_ranges(graph: FloatGraph, names: Sequence[str],
                      batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """The least and the largest value that each tensor has on some inputs, with 0 between them.

    Raises:
        ValueError: If there is no input.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    _summarize(model, [(name, op) for name in names for op in ('ReduceMin', 'ReduceMax')])
    session = _session(model)
    found: dict[str, tuple[float, float]] = {}
    for batch in batches:
        outputs = iter(session.run(None, dict(batch)))
        for name, low, high in zip(names, outputs, outputs):
            before = found.get(name, (0., 0.))
            found[name] = min(before[0], float(low)), max(before[1], float(high))
    if not found:
        raise ValueError('there is no calibration image')
    return found


def _summarize(model: onnx.ModelProto, summaries: Sequence[tuple[str, str]]) -> None:
    """Makes a model give numbers only: each a tensor's name, and the operator that reduces it."""
    graph = model.graph
    graph.initializer.extend([numpy_helper.from_array(np.zeros(1, np.float32), 'summary/zero'),
                              numpy_helper.from_array(np.array([-1]), 'summary/shape')])
    del graph.output[:]
    for name in dict.fromkeys(name for name, _ in summaries):
        # A tensor may be empty, and of nothing there is no largest value.
        graph.node.extend([
            helper.make_node('Reshape', [name, 'summary/shape'], [f'{name}/flat']),
            helper.make_node('Concat', [f'{name}/flat', 'summary/zero'], [f'{name}/filled'], axis=0)])
    for name, op in summaries:
        graph.node.append(helper.make_node(op, [f'{name}/filled'], [f'{name}/{op}'], keepdims=0))
        graph.output.append(onnx.ValueInfoProto(name=f'{name}/{op}'))


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])


def _groups(graph: FloatGraph) -> dict[str, str]:
    """The group of each tensor; tensors of one group have one grid, because bytes are moved between them."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        for name in node.output:
            root(name)
        divides_layer = node.op_type in ('Split', 'Slice') and find_pieces(graph, node.input[0]) is not None
        if node.op_type in MOVING and not divides_layer:
            inputs = node.input if node.op_type == 'Concat' else node.input[:1]
            first, *others = (name for name in (*inputs, *node.output) if name not in graph.constants)
            for name in others:
                parent[root(name)] = root(first)
    for value in graph.model.graph.input:
        root(value.name)
    return {name: root(name) for name in parent}
