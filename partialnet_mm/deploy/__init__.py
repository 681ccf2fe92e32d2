# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Deployment: networks and whole models as ONNX files, and a predictor that runs them without torch.

``from partialnet_mm.deploy import Predictor`` needs numpy, onnxruntime and Pillow only. The modules that write files
need torch.
"""

__all__ = ['Predictor', 'Result']


def __getattr__(name: str) -> object:
    # Whoever writes files needs no onnxruntime.
    if name in __all__:
        from . import predictor
        return getattr(predictor, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
