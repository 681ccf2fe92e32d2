# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Export of networks as ONNX models, and comparison of ONNX models with their networks."""
import importlib.util
import inspect
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from partialnet_mm.deploy.exported_form import exported_form
from partialnet_mm.deploy.whole_model import AXES, WholeModel

if TYPE_CHECKING:
    import onnx
    import onnxruntime

#: Name of the input of every model that is written here.
INPUT = 'images'
#: Height and width at which a network for any size is traced: no two sizes are equal, and no map of the pyramids that
#: detectors have, down to a stride of 128, has a side of one pixel.
TRACED_SIZE = (160, 288)
OPSET = 17


def require_onnx() -> None:
    """Raises an ImportError with the command that installs what is missing to write and run ONNX models."""
    missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} must be installed to write ONNX: pip install {' '.join(missing)}")


def to_onnx(network: nn.Module, input_shape: Sequence[int], output_names: Sequence[str],
            dynamic: bool = True) -> 'onnx.ModelProto':
    """Writes a network of feature maps or vectors as an ONNX model.

    Args:
        network: In evaluation mode, on the CPU; from one tensor (B, C, H, W) to a tensor or a tuple of them.
        input_shape: (B, C, H, W). Where ``dynamic``, only C matters.
        output_names: A name for each output. The input is :data:`INPUT`.
        dynamic: Whether the model takes any batch, height and width, or ``input_shape`` alone. Defaults to True.

    Raises:
        ValueError: If ONNX has no operator for one of the network's; the message names it.
    """
    shape = (2, input_shape[1], *TRACED_SIZE) if dynamic else tuple(input_shape)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    axes: dict[str, Mapping[int, str]] = dict.fromkeys(output_names, {})
    if dynamic:
        with torch.no_grad():
            outputs = _as_tuple(network(images))
        axes = {INPUT: {0: 'batch', 2: 'height', 3: 'width'}}
        for name, output in zip(output_names, outputs):
            axes[name] = {axis: 'batch' if axis == 0 else f'{name}_{("", "", "height", "width")[axis]}'
                          for axis in (0, 2, 3) if axis < output.dim()}
    return _export(network, images, output_names, axes)


def whole_to_onnx(model: WholeModel, size: tuple[int, int] | None = None) -> 'onnx.ModelProto':
    """Writes a whole model as an ONNX model.

    Args:
        model: On the CPU.
        size: Height and width of the one image that the ONNX model takes. None, the default, makes an ONNX model for
            batches and images of any size.

    Raises:
        ValueError: If ONNX has no operator for one of the model's; the message names it.
    """
    shape = (2, *TRACED_SIZE, 3) if size is None else (1, *size, 3)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    axes = {INPUT: {0: 'batch', 1: 'height', 2: 'width'}, **{name: AXES[name] for name in model.outputs}}
    if size is not None:
        axes = {name: {axis: text for axis, text in free.items() if text == 'objects'} for name, free in axes.items()}
    return _export(model, images, model.outputs, axes)


def session_of(model: 'onnx.ModelProto | str') -> 'onnxruntime.InferenceSession':
    """A session of onnxruntime on the CPU, with torch's number of threads, of a model or the path of its file.

    Raises:
        ValueError: If onnxruntime does not load it.
    """
    require_onnx()
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model if isinstance(model, str) else model.SerializeToString(), options,
                                            providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's own types
        raise ValueError(f'onnxruntime cannot load the model: {error}') from error


def run_session(session: 'onnxruntime.InferenceSession', images: Tensor) -> tuple[Tensor, ...]:
    """What a session gives for images, which are its one input.

    Raises:
        ValueError: If onnxruntime fails.
    """
    try:
        return tuple(map(torch.from_numpy, session.run(None, {INPUT: images.numpy()})))
    except Exception as error:  # onnxruntime's own types
        raise ValueError(f'onnxruntime cannot run the model on images of shape {tuple(images.shape)}: '
                         f'{error}') from error


def differences(model: 'onnx.ModelProto', network: nn.Module, shapes: Sequence[Sequence[int]]) -> list[float]:
    """Relative differences between an ONNX model, in onnxruntime on the CPU, and its network in evaluation mode.

    For each shape (B, C, H, W) of random images, it is the largest difference of any output over that output's largest
    value; infinite where the shapes of the outputs differ, NaN where one has a NaN. A ValueError is raised where
    onnxruntime cannot run the model.
    """
    session = session_of(model)
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes:
        images = torch.randn(tuple(shape), generator=generator)
        with torch.no_grad():
            wanted = _as_tuple(network(images))
        found.append(relative_difference(run_session(session, images), wanted))
    return found


def relative_difference(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference of any output over that output's largest value; infinite where shapes differ."""
    if [output.shape for output in outputs] != [want.shape for want in wanted]:
        return float('inf')
    # Unlike Python's, torch's maximum is NaN where any is.
    return torch.stack([(output - want).abs().max() / want.abs().max()
                        for output, want in zip(outputs, wanted)]).max().item()


def _as_tuple(outputs: object) -> tuple[Tensor, ...]:
    return (outputs, ) if isinstance(outputs, Tensor) else tuple(outputs)


def _export(network: nn.Module, images: Tensor, output_names: Sequence[str],
            axes: Mapping[str, Mapping[int, str]]) -> 'onnx.ModelProto':
    """An ONNX model by torch's exporter that traces, which all versions have.

    Newer versions have one of graphs as their default. It takes a minute for a large variant where this one takes
    seconds, the files of both are equally fast, and it does not write the suppression and alignment of boxes.
    """
    require_onnx()
    import onnx
    # These register operators and may not do so while torch traces.
    importlib.import_module('torchvision')
    tracing = dict(dynamo=False) if 'dynamo' in inspect.signature(torch.onnx.export).parameters else {}
    # The warnings concern tracing, whose results are checked, and the exporter's age.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        path = str(Path(folder) / 'network.onnx')
        try:
            torch.onnx.export(exported_form(network), (images, ), path, input_names=[INPUT],
                              output_names=list(output_names), opset_version=OPSET,
                              dynamic_axes={name: dict(free) for name, free in axes.items()}, **tracing)
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(f'the model cannot be expressed in an ONNX file: {str(error).splitlines()[0]}') from error
        model = onnx.load(path)
    foreign = sorted({f'{node.domain}::{node.op_type}' for node in model.graph.node if node.domain})
    if foreign:
        raise ValueError(f'the model cannot be expressed in an ONNX file by standard operators: {", ".join(foreign)}')
    return model
