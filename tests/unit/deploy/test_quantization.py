# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""INT8 graphs: close to the float32 network, in bytes throughout, the same for any batch and size."""
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from partialnet_mm.deploy.onnx_export import INPUT, to_onnx
from partialnet_mm.models import PartialNet

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
from onnx import helper, numpy_helper  # noqa: E402

from partialnet_mm.deploy.quantization import Quantizer, quantize  # noqa: E402

SHAPE = (1, 3, 64, 96)


class Residual(nn.Module):
    """Two layers with a residual, a grouped convolution, and the activations that a layer takes over."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.last, self.fc = nn.Conv2d(16, 20, 1), nn.Linear(20, 30)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = F.relu(x + F.relu6(self.second(x)))
        x = self.last(x)
        return self.fc(x.mean((2, 3)))


class Pieces(nn.Module):
    """Channels that are divided, gated at each pixel, shifted, and joined again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 1, 1)
        self.conv, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(24, 20, 1)
        self.shift = nn.Parameter(torch.randn(16, 1, 1))

    def forward(self, x):
        x = self.first(x)
        convolved, rest = x.split((8, 16), 1)
        x = torch.cat((self.conv(convolved), rest * F.hardsigmoid(3 * self.gate(x)) + self.shift), 1)
        convolved, rest = self.last(x).split((12, 8), 1)
        return torch.cat((convolved[:, :8] + rest, rest), 1)


def partialnet(act='ReLU'):
    arch = dict(embed_dim=32, depths=(1, 1, 1, 1), num_heads=2, act_cfg=dict(type=act))
    return PartialNet(arch, out_indices=(3, ), init_cfg=[])


NETWORKS = dict(residual=Residual, pieces=Pieces, relu=partialnet, gelu=lambda: partialnet('GELU'))


def build(name, randomize_norms):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    randomize_norms(network)
    if isinstance(network, PartialNet):
        with torch.no_grad():  # gates that are neither open nor shut
            for stage in network.stages:
                stage[0].spatial_attention.logit_conv.weight.mul_(.1)
        network.switch_to_deploy()
    return network.eval()


def images(*shape, seed=0):
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed)).numpy()


def calibration(count=4):
    return [{INPUT: images(seed=seed)} for seed in range(count)]


def run(model, values):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return session.run(None, {INPUT: values})[0]


def error(given, wanted):
    """Root of the mean square of the difference, over that of what is wanted."""
    return np.linalg.norm(given - wanted) / np.linalg.norm(wanted)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize('dynamic', [True, False])
@pytest.mark.parametrize('name', NETWORKS)
def test_quantized_network_is_close_and_computes_its_layers_in_bytes(name, dynamic, randomize_norms):
    network = build(name, randomize_norms)
    model = to_onnx(network, SHAPE, ['out'], dynamic)
    before = model.SerializeToString()
    quantized = quantize(model, calibration())
    assert model.SerializeToString() == before
    given, wanted = run(quantized, images(seed=1)), run(model, images(seed=1))
    assert error(given, wanted) < .08
    found = operators(quantized)
    assert not {'Conv', 'Relu6', 'HardSigmoid', 'Erf', 'LayerNorm'} & found.keys()
    # Only the image, which comes with the channels first, and a feature map that is returned are transposed.
    assert found['Transpose'] <= 2
    if dynamic:
        values = np.concatenate((images(1, 3, 96, 64), images(1, 3, 96, 64, seed=5)))
        both = run(quantized, values)
        alone = np.concatenate([run(quantized, value[None]) for value in values])
        np.testing.assert_allclose(both, alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())
        assert error(both, run(model, values)) < .1


def test_blocks_of_partialnet_stay_in_bytes(randomize_norms):
    model = quantize(to_onnx(build('relu', randomize_norms), SHAPE, ['out'], False), calibration(1))
    found = operators(model)
    # The image; in stage 4 the tokens of the attention, the input of its projection, and its output.
    assert found['QuantizeLinear'] == 1 + 3 + 3
    # The statistics of three gates, the input of the attention, and the feature map that is returned.
    assert found['DequantizeLinear'] == 3 + 1 + 1
    assert found['MultiHeadAttention'] == 1 and found['ReduceMean'] == 0
    # Four downsampling layers; for each block the mixer's, the first of the MLP, two pieces of the second, the logit.
    assert found['QLinearConv'] == 4 + 4 * 5
    assert found['MatMulIntegerToFloat'] == 2
    # The logit of PAT_sp comes from the half that it weights, not from the hidden layer.
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = [dims[node.input[3]] for node in model.graph.node if node.op_type == 'QLinearConv']
    assert [shape for shape in shapes if shape[0] == 1] == [(1, channels // 2, 1, 1) for channels in (32, 64, 128, 256)]


def test_moved_bytes_have_one_scale(randomize_norms):
    model = quantize(to_onnx(build('pieces', randomize_norms), SHAPE, ['out'], True), calibration(1))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    scales = {}
    for node in model.graph.node:
        names = list(node.input)
        if node.op_type in ('QLinearConv', 'QLinearMul', 'QLinearAdd'):
            scales[node.output[0]] = float(constants[names[6]]), int(constants[names[7]])
        elif node.op_type in ('Split', 'Slice'):
            scales.update((name, scales[names[0]]) for name in node.output)
        elif node.op_type == 'Concat':
            assert len({scales[name] for name in names}) == 1
            scales[node.output[0]] = scales[names[0]]
    assert operators(model)['Concat'] == 2


def test_gate_is_cut_off_by_its_bytes(randomize_norms):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1)

        def forward(self, x):
            x = self.conv(x)
            return x * F.hardsigmoid(9 * self.gate(x))

    torch.manual_seed(0)
    model = to_onnx(Gated().eval(), SHAPE, ['out'], False)
    quantized = quantize(model, calibration())
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer}
    gate = next(node for node in quantized.graph.node if node.op_type == 'QLinearConv'
                and 'HardSigmoid' in node.output[0])
    assert constants[gate.input[6]] == np.float32(1 / 255) and constants[gate.input[7]] == 0
    assert error(run(quantized, images(seed=1)), run(model, images(seed=1))) < .05


@pytest.mark.parametrize('reduce_range, most', [(True, 64), (False, 127)])
def test_weights_use_their_range(reduce_range, most, randomize_norms):
    model = to_onnx(build('residual', randomize_norms), SHAPE, ['out'], True)
    quantized = quantize(model, calibration(1), reduce_range=reduce_range)
    weights = [numpy_helper.to_array(tensor) for tensor in quantized.graph.initializer
               if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1]
    assert len(weights) == 4
    assert {int(np.abs(weight).max()) for weight in weights} == {most}


def test_layers_in_float32(randomize_norms):
    network = build('relu', randomize_norms)
    model = to_onnx(network, SHAPE, ['out'], True)
    quantizer = Quantizer(model, calibration(2))
    assert {'stages.0.0.token_mixer.conv', 'stages.0.0.token_mixer.gate.conv', 'stages.3.0.mlp.conv1',
            'downsample_layers.2.conv'} < set(quantizer.layers)
    wanted = run(model, images(seed=1))
    assert error(run(quantizer.quantized(quantizer.layers), images(seed=1)), wanted) < 1e-5
    one = quantizer.quantized(['stages.1.0.token_mixer.conv'])
    assert operators(one)['Conv'] == 1
    assert 1e-3 < error(run(one, images(seed=1)), wanted) < .08


def test_layer_errors_name_the_layer_that_bytes_fit_least(randomize_norms):
    network = build('residual', randomize_norms)
    with torch.no_grad():
        network.second.weight[:, 0] *= 1e-3
        network.second.weight[:, 0, 0, 0] = 50.
    errors = Quantizer(to_onnx(network, SHAPE, ['out'], True), calibration()).layer_errors(calibration(2))
    assert list(errors)[0] == 'second'
    assert set(errors) == {'first', 'second', 'last', 'fc'}
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert all(0 < value < 1 for value in errors.values())


def test_subgraphs_and_shapes_read_what_the_float32_graph_had():
    """A branch and a shape read a feature map that the INT8 graph holds with the channels last."""
    info = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((5, 3, 1, 1), dtype=np.float32), 'w')
    branches = {name: helper.make_graph([helper.make_node(op, ['map'], [name])], name, [],
                                        [info(name, onnx.TensorProto.FLOAT, None)])
                for name, op in (('then_branch', 'Neg'), ('else_branch', 'Abs'))}
    constants = [weight, numpy_helper.from_array(np.array(7), 'seven'), numpy_helper.from_array(np.array(2), 'two')]
    graph = helper.make_graph([
        helper.make_node('Conv', [INPUT, 'w'], ['map']),
        helper.make_node('Shape', ['map'], ['shape']),
        helper.make_node('Gather', ['shape', 'two'], ['height']),
        helper.make_node('Equal', ['height', 'seven'], ['is_seven']),
        helper.make_node('If', ['is_seven'], ['out'], **branches)], 'graph',
        [info(INPUT, onnx.TensorProto.FLOAT, ['b', 3, 'h', 'w'])], [info('out', onnx.TensorProto.FLOAT, None)],
        constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    helper.set_model_props(model, dict(task='classification'))
    quantized = quantize(model, [{INPUT: images()}])
    assert operators(quantized)['QLinearConv'] == 1
    assert {entry.key: entry.value for entry in quantized.metadata_props} == dict(task='classification')
    for height in (7, 8):
        values = images(2, 3, height, 9)
        assert error(run(quantized, values), run(model, values)) < .02


def test_what_cannot_be_quantized_is_refused(randomize_norms):
    model = to_onnx(build('residual', randomize_norms), SHAPE, ['out'], True)
    with pytest.raises(ValueError, match='no calibration image'):
        quantize(model, [])
    with pytest.raises(ValueError, match=r"no layer 'secnd'; near it are \['second'\]"):
        quantize(model, calibration(1), ['secnd'])
    with pytest.raises(ValueError, match='no convolution and no linear layer'):
        quantize(to_onnx(nn.ReLU(), SHAPE, ['out'], True), calibration(1))
