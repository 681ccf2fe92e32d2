# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Small ONNX files of the form of whole models, whose answers are known."""
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: What every file says of itself.
METADATA = dict(classes=['disc', 'box', 'tree'], preprocessing=[], exif=True)


def write_whole_model(path, task, *, boxes=(), masks=None, metadata=None):
    """Writes a file for a task, and returns its path.

    A classifier returns the mean of each channel over the sum of all means. A segmentor returns the red channel. A
    detector returns ``boxes``, given as (x1, y1, x2, y2, score, label), with ``masks`` (N, h, w), for any image.

    ``metadata`` adds entries, or removes those that are None.
    """
    images = helper.make_tensor_value_info('images', TensorProto.UINT8, ['batch', 'height', 'width', 3])
    constants, outputs, nodes = {}, {}, []
    if task == 'classification':
        constants = dict(axes=np.array([1, 2]), last=np.array([1]))
        nodes = [helper.make_node('Cast', ['images'], ['floats'], to=TensorProto.FLOAT),
                 helper.make_node('ReduceMean', ['floats', 'axes'], ['means'], keepdims=0),
                 helper.make_node('ReduceSum', ['means', 'last'], ['sum']),
                 helper.make_node('Div', ['means', 'sum'], ['probabilities'])]
        outputs = dict(probabilities=(TensorProto.FLOAT, ['batch', 3]))
    elif task == 'segmentation':
        constants = dict(red=np.array(0))
        nodes = [helper.make_node('Gather', ['images', 'red'], ['class_map'], axis=3)]
        outputs = dict(class_map=(TensorProto.UINT8, ['batch', 'height', 'width']))
    else:
        table = np.array(boxes, np.float32).reshape(-1, 6)
        constants = dict(boxes_=table[None, :, :4], scores_=table[None, :, 4],
                         labels_=table[None, :, 5].astype(np.int64))
        if masks is not None:
            constants['masks_'] = np.asarray(masks, np.float32)[None]
        for name in list(constants):
            nodes.append(helper.make_node('Identity', [name], [name[:-1]]))
            kind = TensorProto.INT64 if name == 'labels_' else TensorProto.FLOAT
            outputs[name[:-1]] = (kind, constants[name].shape)
    graph = helper.make_graph(
        nodes, task, [images], [helper.make_tensor_value_info(name, *form) for name, form in outputs.items()],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    texts = {**METADATA, 'task': task, **(metadata or {})}
    helper.set_model_props(model, {name: value if isinstance(value, str) else json.dumps(value)
                                   for name, value in texts.items() if value is not None})
    onnx.save(model, str(path))
    return path
