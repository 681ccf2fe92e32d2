# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Static INT8 quantization of ONNX models for onnxruntime."""
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx


def quantize(model: onnx.ModelProto,
             batches: Iterable[dict[str, np.ndarray]],
             float_layers: Sequence[str] = (),
             reduce_range: bool = True) -> onnx.ModelProto:
    """Quantizes a float32 model to INT8, by the ranges that its activations have on calibration images.

    Args:
        model: A float32 model, which stays as it is.
        batches: Inputs by name for each calibration run.
        float_layers: Names of nodes that stay in float32. Defaults to none.
        reduce_range: Whether weights have 7 bits. With 8 bits, processors
            without VNNI saturate sums of two products. Defaults to True.

    Returns:
        The quantized model.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'quantized.onnx'
        quantize_static(model, str(path), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        reduce_range=reduce_range, nodes_to_exclude=list(float_layers))
        return onnx.load(path)
