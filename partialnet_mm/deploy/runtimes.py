# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Networks as functions that run in onnxruntime or OpenVINO on the CPU."""
import importlib.metadata
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from .onnx_export import INPUT, require_onnx, session_of, to_onnx

RUNTIMES = ('onnxruntime', 'openvino')
#: Random batches from which the ranges of INT8 are taken. They do not change the speed.
CALIBRATION_BATCHES = 4


def require_runtime(runtime: str) -> None:
    """Raises an ImportError with the command that installs what is missing to run networks in a runtime."""
    require_onnx()
    if importlib.util.find_spec(runtime) is None:
        raise ImportError(f'{runtime} must be installed: pip install {runtime}')


def describe_runtime(runtime: str) -> str:
    """Its name and version, e.g. 'onnxruntime 1.18.0'."""
    return f'{runtime} {importlib.metadata.version(runtime)}'


def in_runtime(network: nn.Module, images: Tensor, runtime: str, int8: bool = False) -> Callable[[], object]:
    """A function that runs a network once on some images, with torch's number of threads.

    Args:
        network: In evaluation mode, on the CPU; from one tensor to tensors, also nested ones.
        images: (B, C, H, W). The network is compiled for this shape.
        runtime: One of :data:`RUNTIMES`.
        int8: Whether to quantize it, for onnxruntime. Defaults to False.

    Raises:
        ValueError: If ONNX or the runtime cannot express the network.
    """
    require_runtime(runtime)
    with torch.no_grad():
        count = len(tree_flatten(network(images))[0])
    model = to_onnx(_Flat(network), images.shape, [f'output{i}' for i in range(count)], dynamic=False)
    if int8:
        from .quantization import quantize
        generator = torch.Generator().manual_seed(0)
        model = quantize(model, [{INPUT: torch.randn(images.shape, generator=generator).numpy()}
                                 for _ in range(CALIBRATION_BATCHES)])
    inputs = images.contiguous().numpy()
    if runtime == 'onnxruntime':
        session = session_of(model)
        return lambda: session.run(None, {INPUT: inputs})
    import openvino
    options = dict(INFERENCE_NUM_THREADS=torch.get_num_threads(), NUM_STREAMS=1, PERFORMANCE_HINT='LATENCY',
                   INFERENCE_PRECISION_HINT='f32')  # by itself it takes bfloat16 where the processor has it
    core = openvino.Core()
    request = core.compile_model(core.read_model(model.SerializeToString()), 'CPU', options).create_infer_request()
    return lambda: request.infer([inputs])


class _Flat(nn.Module):
    """A network with its outputs as one tuple."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_flatten(self.network(images))[0])
