# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Recognizes layers of PartialNet that exporters write as many nodes: gates of statistics, and self-attention."""
from typing import NamedTuple

import numpy as np
from onnx import NodeProto

from ._float_graph import FloatGraph, attributes

#: Nodes that give other dimensions to values in the same order.
RESHAPING = ('Reshape', 'Flatten', 'Squeeze', 'Unsqueeze')


class Statistics(NamedTuple):
    """What the mean and the deviation of each channel are computed from."""

    values: str  # (B, L, C) or (B, C, H, W)
    count: str   # the divisor of the sum of squares


class Attention(NamedTuple):
    """Self-attention: softmax(scale * query @ key + bias) @ value for each head."""

    tokens: str  # (B, L, 3 C): query, key and value, the heads in each one after the other
    bias: str    # (1 or B, heads, L, L)
    heads: int
    scale: float


def find_statistics(graph: FloatGraph, gemm: NodeProto) -> Statistics | None:
    """The statistics that a matrix product maps to gates, the mean and the deviation of a channel side by side."""
    stack = _before(graph, gemm.input[0], RESHAPING)
    weight = graph.constants.get(gemm.input[1])
    if stack is None or stack.op_type != 'Concat' or len(stack.input) != 2 or weight is None:
        return None
    rank = graph.rank(stack.output[0])
    if rank not in (3, 4) or attributes(stack)['axis'] % rank != rank - 1:
        return None
    pixels = {3: [1], 4: [2, 3]}[rank]
    mean, deviation = (_before(graph, name, RESHAPING) for name in stack.input)
    if mean is None or mean.op_type != 'ReduceMean' or graph.axes(mean) != pixels or graph.rank(mean.input[0]) != rank:
        return None
    if deviation is None or deviation.op_type != 'Sqrt':
        return None
    variance = _before(graph, deviation.input[0], ('Clip', ))
    total = None if variance is None or variance.op_type != 'Div' else graph.producer.get(variance.input[0])
    if total is None or total.op_type != 'ReduceSum' or graph.axes(total) != pixels:
        return None
    square = graph.producer.get(total.input[0])
    centered = None if square is None else graph.producer.get(square.input[0])
    if (centered is None or centered.op_type != 'Sub' or list(centered.input) != [mean.input[0], mean.output[0]]
            or not _is_square(graph, square)):
        return None
    return Statistics(mean.input[0], variance.input[1])


def find_attention(graph: FloatGraph, reshape: NodeProto) -> Attention | None:
    """The attention of several heads whose outputs a node joins, (B, L, heads, C / heads) to (B, L, C)."""
    joined = graph.producer.get(reshape.input[0])
    if joined is None or joined.op_type != 'Transpose' or attributes(joined).get('perm') != [0, 2, 1, 3]:
        return None
    product = graph.producer.get(joined.input[0])
    if product is None or product.op_type != 'MatMul' or graph.rank(reshape.output[0]) != 3:
        return None
    softmax = graph.producer.get(product.input[0])
    if softmax is None or softmax.op_type != 'Softmax' or attributes(softmax).get('axis', -1) not in (-1, 3):
        return None
    biased = graph.producer.get(softmax.input[0])
    if biased is None or biased.op_type != 'Add':
        return None
    scores, bias = graph.producer.get(biased.input[0]), biased.input[1]
    if scores is None or scores.op_type != 'MatMul':
        scores, bias = graph.producer.get(biased.input[1]), biased.input[0]
    if scores is None or scores.op_type != 'MatMul':
        return None
    query, query_scale = _scaled(graph, scores.input[0])
    key, key_scale = _scaled(graph, scores.input[1])
    moved = graph.producer.get(key)
    if moved is None or moved.op_type != 'Transpose' or attributes(moved).get('perm') != [0, 1, 3, 2]:
        return None
    key, other_scale = _scaled(graph, moved.input[0])
    parts = [_part(graph, name) for name in (query, key, product.input[1])]
    if None in parts or [index for _, index in parts] != [0, 1, 2] or len({source for source, _ in parts}) > 1:
        return None
    moved = graph.producer.get(parts[0][0])
    if moved is None or moved.op_type != 'Transpose' or attributes(moved).get('perm') != [2, 0, 3, 1, 4]:
        return None
    divided = graph.producer.get(moved.input[0])
    shape = graph.shapes.get(moved.input[0])
    if divided is None or divided.op_type != 'Reshape' or shape is None or not isinstance(shape[3], int):
        return None
    width = graph.shapes[reshape.output[0]][2]
    if graph.rank(divided.input[0]) != 3 or not isinstance(width, int):
        return None
    return Attention(divided.input[0], bias, shape[3], query_scale * key_scale * other_scale)


def find_pieces(graph: FloatGraph, name: str) -> list[tuple[int, int, NodeProto, str]] | None:
    """How the output of a linear layer is divided along its channels, where that is all that happens to it.

    Returns:
        For each piece, in their order, its first channel, its last channel
        (exclusive), its node, and its name; None if the tensor is not the
        output of a linear layer, or is read otherwise.
    """
    layer = graph.producer.get(name)
    if layer is not None and layer.op_type == 'Add':
        found = graph.constant_input(layer)
        layer = graph.producer.get(found[1]) if found is not None and graph.only_consumer(found[1]) else None
    if layer is None or layer.op_type not in ('Conv', 'MatMul') or layer.input[1] not in graph.constants:
        return None
    axis = 1 if layer.op_type == 'Conv' else 3
    shape, readers = graph.shapes.get(name, ()), graph.consumers[name]
    if len(shape) != 4 or not isinstance(shape[axis], int) or name in graph.outputs or not readers:
        return None
    pieces: list[tuple[int, int, NodeProto, str]] = []
    for node in readers:
        if node.op_type == 'Split' and attributes(node).get('axis', 0) % 4 == axis and len(readers) == 1:
            ends = np.cumsum([0, *(graph.shapes[out][axis] for out in node.output)]).tolist()
            pieces = [(low, high, node, out) for low, high, out in zip(ends, ends[1:], node.output)]
        elif node.op_type == 'Slice' and (found := channel_slice(graph, node, axis)) is not None:
            pieces.append((*found, node, node.output[0]))
        else:
            return None
    pieces.sort(key=lambda piece: piece[:2])
    whole = [low for low, *_ in pieces] == [0, *(piece[1] for piece in pieces[:-1])] and pieces[-1][1] == shape[axis]
    return pieces if whole and len(pieces) > 1 else None


def channel_slice(graph: FloatGraph, node: NodeProto, channel_axis: int) -> tuple[int, int] | None:
    """First and last channel (exclusive) of a slice along the channels; None of any other."""
    given = [graph.constants.get(name) for name in node.input[1:]]
    if len(given) < 3 or any(value is None or value.size != 1 for value in given):
        return None
    start, end, axis, *step = (int(value.flat[0]) for value in given)
    shape = graph.shapes[node.input[0]]
    if axis % len(shape) != channel_axis or step not in ([], [1]) or not isinstance(shape[channel_axis], int):
        return None
    return slice(start, end).indices(shape[channel_axis])[:2]


def find_gelu(graph: FloatGraph, erf: NodeProto) -> tuple[str, list[NodeProto]] | None:
    """The input of a GELU that is written by its error function, and its nodes, the last one last."""
    inner = graph.producer.get(erf.input[0])
    found = None if inner is None or inner.op_type not in ('Mul', 'Div') else graph.constant_input(inner)
    if found is None or found[0].size != 1 or (inner.op_type == 'Div' and found[1] != inner.input[0]):
        return None
    factor = float(found[0].flat[0])
    if abs((factor if inner.op_type == 'Mul' else 1 / factor) - 0.5**0.5) > 1e-4:
        return None
    values, nodes = found[1], [inner, erf]
    add = graph.only_consumer(erf.output[0])
    found = None if add is None or add.op_type != 'Add' else graph.constant_input(add)
    if found is None or found[0].size != 1 or found[0].flat[0] != 1:
        return None
    nodes.append(add)
    halved = multiplied = False
    while not (halved and multiplied):
        product = graph.only_consumer(nodes[-1].output[0])
        if product is None or product.op_type != 'Mul':
            return None
        other = next((name for name in product.input if name != nodes[-1].output[0]), None)
        constant = graph.constants.get(other)
        half = graph.producer.get(other)
        if constant is not None and constant.size == 1 and constant.flat[0] == .5 and not halved:
            halved = True
        elif other == values and not multiplied:
            multiplied = True
        elif half is not None and half.op_type == 'Mul' and not halved and not multiplied:
            found = graph.constant_input(half)
            if found is None or found[1] != values or found[0].size != 1 or found[0].flat[0] != .5:
                return None
            nodes.append(half)
            halved = multiplied = True
        else:
            return None
        nodes.append(product)
    return values, nodes


def _before(graph: FloatGraph, name: str, passing: tuple[str, ...]) -> NodeProto | None:
    """The node that computes a tensor, before all nodes of some kinds."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in passing:
        node = graph.producer.get(node.input[0])
    return node


def _is_square(graph: FloatGraph, node: NodeProto) -> bool:
    if node.op_type == 'Mul':
        return node.input[0] == node.input[1]
    exponent = graph.constants.get(node.input[1]) if node.op_type == 'Pow' else None
    return exponent is not None and exponent.size == 1 and float(exponent.flat[0]) == 2


def _scaled(graph: FloatGraph, name: str) -> tuple[str, float]:
    """A tensor before its product with a constant number, and that number."""
    node = graph.producer.get(name)
    if node is not None and node.op_type == 'Mul':
        found = graph.constant_input(node)
        if found is not None and np.size(found[0]) == 1:
            return found[1], float(found[0].flat[0])
    return name, 1.


def _part(graph: FloatGraph, name: str) -> tuple[str, int] | None:
    """What a tensor is one index of along the first dimension, and the index."""
    node = graph.producer.get(name)
    if node is not None and node.op_type == 'Gather' and attributes(node).get('axis', 0) == 0:
        index = graph.constants.get(node.input[1])
        return None if index is None or index.ndim else (node.input[0], int(index))
    if node is None or node.op_type != 'Squeeze' or graph.axes(node) != [0]:
        return None
    split = graph.producer.get(node.input[0])
    if split is None or split.op_type != 'Split' or attributes(split).get('axis', 0) != 0:
        return None
    return split.input[0], list(split.output).index(node.input[0])
