# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Static INT8 quantization of ONNX models for onnxruntime."""
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx

from ._float_graph import FloatGraph
from ._int8_graph import Grid, Int8Graph
from ._patterns import find_pieces

#: Nodes that only move values, so that all they read and write has one grid.
MOVING = ('Concat', 'Split', 'Slice', 'Transpose', 'Reshape')


def quantize(model: onnx.ModelProto,
             batches: Iterable[dict[str, np.ndarray]],
             float_layers: Sequence[str] = (),
             reduce_range: bool = True) -> onnx.ModelProto:
    """Quantizes a float32 model to INT8, by the ranges that its activations have on calibration images.

    Args:
        model: A float32 model, which stays as it is.
        batches: Inputs by name for each calibration run.
        float_layers: Names of layers that stay in float32. Defaults to none.
        reduce_range: Whether weights have 7 bits. With 8 bits, processors
            without VNNI saturate sums of two products. Defaults to True.

    Returns:
        The quantized model.
    """
    graph = FloatGraph(model)
    needed: dict[str, None] = {}

    def record(name: str) -> Grid:
        needed[name] = None
        return Grid(1., 0)

    bits = 7 if reduce_range else 8
    Int8Graph(graph, record, float_layers, bits)
    ranges = activation_ranges(graph, list(needed), batches)
    groups = _groups(graph)
    joint: dict[str, tuple[float, float]] = {}
    for name in needed:
        low, high = joint.get(groups[name], ranges[name])
        joint[groups[name]] = min(low, ranges[name][0]), max(high, ranges[name][1])
    return Int8Graph(graph, lambda name: Grid.of_range(*joint[groups[name]]), float_layers, bits).model()


def activation_ranges(graph: FloatGraph, names: Sequence[str],
                      batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, tuple[float, float]]:
    """The least and the largest value that each tensor has on some inputs.

    Raises:
        ValueError: If there is no input.
    """
    import onnxruntime
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    found: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, value in zip(names, session.run(names, dict(batch))):
            low, high = found.get(name, (np.inf, -np.inf))
            if value.size:
                found[name] = min(low, float(value.min())), max(high, float(value.max()))
    if not found:
        raise ValueError('there is no calibration image')
    return {name: found.get(name, (0., 0.)) for name in names}


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
