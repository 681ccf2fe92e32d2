# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The float32 graph of an ONNX model, simplified for reading, with producers, consumers and shapes at hand."""
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper, numpy_helper

#: From channels first to channels last, by rank; and back.
TO_LAST = {3: [0, 2, 1], 4: [0, 2, 3, 1]}
TO_FIRST = {3: [0, 2, 1], 4: [0, 3, 1, 2]}
#: Rewritings of onnxruntime that would hide what is looked for here.
UNWANTED = ['MatMulAddFusion', 'TransposeOptimizer', 'GemmActivationFusion', 'GeluFusionL1', 'LayerNormFusionL1']


class FloatGraph:
    """A model's graph without constant subgraphs, and look-ups in it.

    Args:
        model: A float32 model. It stays as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        model, before = _fold_constants(model), None
        while len(model.graph.node) != before:
            before, model = len(model.graph.node), _fold_constants(_with_known_dims(model))
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self.model, graph = model, model.graph
        self.nodes = needed_nodes(graph.node, [value.name for value in graph.output])
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.outputs = {value.name for value in graph.output}
        self.opset = next(entry.version for entry in model.opset_import if entry.domain == '')
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers[name].append(node)
        self.shapes = {value.name: tuple(_dims(value)) for value in (*graph.input, *graph.value_info, *graph.output)
                       if value.type.tensor_type.HasField('shape')}
        self.shapes.update((name, value.shape) for name, value in self.constants.items())
        self.types = {value.name: value.type.tensor_type.elem_type
                      for value in (*graph.input, *graph.value_info, *graph.output)}

    def rank(self, name: str) -> int | None:
        """Number of dimensions; None where it is unknown."""
        return len(self.shapes[name]) if name in self.shapes else None

    def is_float(self, name: str) -> bool:
        """Whether a tensor is known to be of float32."""
        return self.types.get(name) == onnx.TensorProto.FLOAT

    def only_consumer(self, name: str) -> NodeProto | None:
        """The one node that reads a tensor; None where more do, or the model returns it."""
        found = self.consumers[name]
        return found[0] if len(found) == 1 and name not in self.outputs else None

    def constant_input(self, node: NodeProto) -> tuple[np.ndarray, str] | None:
        """Of a node with two inputs: the constant one, and the name of the other."""
        for constant, other in (node.input, tuple(node.input)[::-1]):
            if constant in self.constants and other not in self.constants:
                return self.constants[constant], other
        return None

    def axes(self, node: NodeProto) -> list[int] | None:
        """The constant axes of a reduction or a (un)squeeze, not negative; None where there are none."""
        given = attributes(node).get('axes')
        if given is None and len(node.input) > 1:
            given = self.constants.get(node.input[1])
        rank = self.rank(node.input[0])
        return None if given is None or rank is None else sorted(int(axis) % rank for axis in np.atleast_1d(given))


def attributes(node: NodeProto) -> dict[str, object]:
    """The attributes of a node."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def read_names(node: NodeProto) -> set[str]:
    """Names of all tensors that a node reads, in its subgraphs as well."""
    return set(node.input).union(*(outer_names(graph) for attribute in node.attribute
                                   for graph in (attribute.g, *attribute.graphs)))


def outer_names(graph: onnx.GraphProto) -> set[str]:
    """Names that the nodes of a subgraph read from outside of it."""
    inner = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    read: set[str] = set()
    for node in graph.node:
        read |= read_names(node) - inner
        inner.update(node.output)
    return read | ({value.name for value in graph.output} - inner)


def needed_nodes(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that some outputs depend on, in their order."""
    found, needed = [], set(outputs)
    for node in reversed(list(nodes)):
        if needed & set(node.output):
            found.append(node)
            needed |= read_names(node)
    return found[::-1]


def _dims(value: onnx.ValueInfoProto) -> Iterator[int | str]:
    for dim in value.type.tensor_type.shape.dim:
        yield dim.dim_value if dim.HasField('dim_value') else dim.dim_param


def _fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / 'model.onnx')
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'],
                                     disabled_optimizers=UNWANTED)
        folded = onnx.load(options.optimized_model_filepath)
    # onnxruntime changes their order.
    del folded.metadata_props[:]
    folded.metadata_props.extend(model.metadata_props)
    return folded


def _with_known_dims(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes constants of single dimensions that are read from a tensor of partly known shape."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {value.name: list(_dims(value)) for value in (*model.graph.input, *model.graph.value_info)
              if value.type.tensor_type.HasField('shape')}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = {}
    for node in model.graph.node:
        if node.op_type == 'Shape' and node.input[0] in shapes:
            given = attributes(node)
            read[node.output[0]] = shapes[node.input[0]][given.get('start', 0):given.get('end')]
    for node in model.graph.node:
        operands = [constants.get(name) for name in node.input[1:]]
        if not node.input or node.input[0] not in read or any(value is None for value in operands):
            continue
        dims = read[node.input[0]]
        if node.op_type == 'Gather' and operands[0].ndim == 0:
            dims, rank = [dims[int(operands[0])]], 0
        elif node.op_type == 'Slice' and len(operands) in (2, 3):
            dims, rank = dims[int(operands[0].flat[0]):int(operands[1].flat[0])], 1
        else:
            continue
        if dims and all(isinstance(dim, int) for dim in dims):
            known = numpy_helper.from_array(np.array(dims, dtype=np.int64).reshape([-1] * rank))
            node.CopyFrom(helper.make_node('Constant', [], node.output, name=node.name, value=known))
    return model
