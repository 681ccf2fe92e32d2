# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Export of networks as ONNX models, and comparison of ONNX models with their networks."""
import importlib.util
import inspect
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import onnx

#: Name of the input of every model that is written here.
INPUT = 'images'
#: Height and width at which a network for any size is traced: no two sizes are equal, and no feature map has a side of
#: one pixel, which torch's exporter would take for a constant.
TRACED_SIZE = (96, 128)


def require_onnx() -> None:
    """Raises an ImportError with the command that installs what is missing to write and run ONNX models."""
    needed = ['onnx', 'onnxruntime'] + (['onnxscript'] if _has_graph_exporter() else [])
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} must be installed to write ONNX: pip install 'partialnet-mm[export]'")


def to_onnx(network: nn.Module, input_shape: Sequence[int], output_names: Sequence[str],
            dynamic: bool = True) -> 'onnx.ModelProto':
    """Writes a network as an ONNX model, by torch's default exporter: of graphs, or in torch 2.1 of TorchScript.

    Args:
        network: In evaluation mode, on the CPU; from one tensor (B, C, H, W) to a tensor or a tuple of them.
        input_shape: (B, C, H, W). Where ``dynamic``, only C matters.
        output_names: A name for each output. The input is :data:`INPUT`.
        dynamic: Whether the model takes any batch, height and width, or ``input_shape`` alone. Defaults to True.
    """
    require_onnx()
    import onnx
    shape = (2, input_shape[1], *TRACED_SIZE) if dynamic else tuple(input_shape)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # The warnings concern tracing, whose results are checked, and names that exporters change.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path = str(Path(folder) / 'network.onnx')
        export = _export_graph if _has_graph_exporter() else _export_trace
        export(network, images, path, list(output_names), dynamic)
        return onnx.load(path)


def differences(model: 'onnx.ModelProto', network: nn.Module, shapes: Sequence[Sequence[int]]) -> list[float]:
    """Relative differences between an ONNX model, in onnxruntime on the CPU, and its network in evaluation mode.

    For each shape (B, C, H, W) of random images, it is the largest difference of any output over that output's largest
    value; infinite where the shapes of the outputs differ, NaN where one has a NaN. A ValueError is raised where
    onnxruntime cannot run the model.
    """
    require_onnx()
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes:
        images = torch.randn(tuple(shape), generator=generator)
        with torch.no_grad():
            wanted = _as_tuple(network(images))
        try:
            outputs = [torch.from_numpy(output) for output in session.run(None, {INPUT: images.numpy()})]
        except Exception as error:  # onnxruntime's own types
            raise ValueError(f'onnxruntime cannot run the model on images of shape {tuple(shape)}: {error}') from error
        if [output.shape for output in outputs] != [want.shape for want in wanted]:
            found.append(float('inf'))
            continue
        # Unlike Python's, torch's maximum is NaN where any is.
        found.append(torch.stack([(output - want).abs().max() / want.abs().max()
                                  for output, want in zip(outputs, wanted)]).max().item())
    return found


def _as_tuple(outputs: object) -> tuple[Tensor, ...]:
    return (outputs, ) if isinstance(outputs, Tensor) else tuple(outputs)


def _has_graph_exporter() -> bool:
    dynamo = inspect.signature(torch.onnx.export).parameters.get('dynamo')
    return dynamo is not None and dynamo.default is True


def _export_graph(network: nn.Module, images: Tensor, path: str, output_names: list[str], dynamic: bool) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    shapes = None
    if dynamic:
        shapes = ({0: torch.export.Dim('batch'), 2: torch.export.Dim('height', min=64),
                   3: torch.export.Dim('width', min=64)}, )
    # The exporter writes attention as matrix products. Another kernel returns another memory format, and the exporter
    # would then fail to infer the shape that follows.
    with sdpa_kernel(SDPBackend.MATH):
        torch.onnx.export(network, (images, ), path, input_names=[INPUT], output_names=output_names, opset_version=18,
                          dynamic_shapes=shapes, dynamo=True, external_data=False, verbose=False)


def _export_trace(network: nn.Module, images: Tensor, path: str, output_names: list[str], dynamic: bool) -> None:
    axes = None
    if dynamic:
        with torch.no_grad():
            outputs = _as_tuple(network(images))
        axes = {INPUT: {0: 'batch', 2: 'height', 3: 'width'}}
        for name, output in zip(output_names, outputs):
            axes[name] = {axis: 'batch' if axis == 0 else f'{name}_{("", "", "height", "width")[axis]}'
                          for axis in (0, 2, 3) if axis < output.dim()}
    torch.onnx.export(network, (images, ), path, input_names=[INPUT], output_names=output_names, opset_version=17,
                      dynamic_axes=axes, verbose=False)
