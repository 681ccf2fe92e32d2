# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Rewritings of ONNX models that keep what they compute."""
from collections import Counter

import onnx
from onnx import numpy_helper


def divide_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Divides each convolution whose output is only split along the channels into one for each part.

    A quantizer then gives each part a range of its own: in a merged block, the logit of PAT_sp has another one than the
    feature map beside it.

    Args:
        model: Stays as it is.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants.update({node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in graph.node
                      if node.op_type == 'Constant' and node.attribute[0].name == 'value'})
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    convolutions = {node.output[0]: node for node in graph.node if node.op_type == 'Conv'}
    nodes = []
    for node in graph.node:
        conv = convolutions.get(node.input[0]) if node.op_type == 'Split' else None
        parts = None if conv is None or uses[node.input[0]] > 1 else _parts(conv, node, constants)
        if parts is None:
            nodes.append(node)
            continue
        nodes = [other for other in nodes if other is not conv]
        for name, tensors in zip(node.output, parts):
            part = onnx.NodeProto()
            part.CopyFrom(conv)
            part.name, part.output[:] = name, [name]
            for i, values in enumerate(tensors, 1):
                part.input[i] = f'{name}/{("weight", "bias")[i - 1]}'
                graph.initializer.append(numpy_helper.from_array(values, part.input[i]))
            nodes.append(part)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _parts(conv: onnx.NodeProto, split: onnx.NodeProto, constants: dict) -> list[list] | None:
    """Weight, and bias where there is one, for each output of a split; None where they do not divide."""
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in split.attribute}
    sizes = constants.get(split.input[1]) if len(split.input) > 1 else None
    tensors = [constants.get(name) for name in conv.input[1:] if name]
    groups = next((attribute.i for attribute in conv.attribute if attribute.name == 'group'), 1)
    if sizes is None or given.get('axis', 0) != 1 or groups != 1 or any(values is None for values in tensors):
        return None
    ends = sizes.cumsum()
    return [[values[end - size:end] for values in tensors] for size, end in zip(sizes, ends)]
