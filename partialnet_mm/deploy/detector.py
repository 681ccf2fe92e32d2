# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What every exporter of detectors is: the detector of mmdet as a function from images to boxes."""
import torch
from torch import Tensor, nn


class Detector(nn.Module):
    """A detector of mmdet from normalized images to what it finds in them, with its post-processing.

    A subclass calls layers, coders and generators of priors of the host, and writes what the host does image by image
    with Python numbers as operations on batches. Its constructor refuses what it does not express by a ValueError that
    names the class or option.

    Args:
        model: The detector, in evaluation mode.
        score_threshold: Scores that are not greater are left out. It is kept as an initializer of the ONNX file, so a
            check can lower it.
    """

    #: Names of the outputs.
    outputs: tuple[str, ...] = ('boxes', 'scores', 'labels')
    #: Height and width of an image, before padding, that the host needs at least, and of which it takes multiples.
    min_size, divisor = 1, 1

    def __init__(self, model: nn.Module, score_threshold: float) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('score_threshold', torch.tensor(float(score_threshold)))

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """What is found in normalized and padded images (B, C, H, W).

        Args:
            images: (B, C, H, W).
            size: (height, width) of the images before padding, in float.

        Returns:
            :attr:`outputs` by falling score, as :func:`~partialnet_mm.deploy.operators.answers` gives them: boxes
            (B, K, 4), scores and labels (B, K).
        """
        raise NotImplementedError


def require_methods(module: nn.Module, host: type, *names: str) -> None:
    """Raises a ValueError if a module of the model is not of a class of the host, or has methods of its own instead.

    An exporter expresses the host's methods ``names``; another class's would go unheard.
    """
    kind = type(module)
    if not isinstance(module, host):
        raise ValueError(f'{kind.__name__} cannot be expressed in an ONNX file; what can be in its position is '
                         f'{host.__name__}')
    own = [name for name in names if getattr(kind, name) is not getattr(host, name)]
    if own:
        raise ValueError(f'{kind.__name__} cannot be expressed in an ONNX file: it has a {", ".join(own)} of its own '
                         f'where {host.__name__} is expressed')
