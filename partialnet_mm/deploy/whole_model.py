# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Whole models of OpenMMLab as functions from uint8 images to answers, for export as ONNX."""
import copy
import importlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partialnet_mm.deploy.detector import Detector, require_methods
from partialnet_mm.models import PartialNet, SplitGates

#: The exporter of each head, as module and class below partialnet_mm.deploy; subclasses have that of their base. A head
#: is the ``roi_head`` of a detector, or the ``bbox_head`` of one without.
DETECTORS = {
    'StandardRoIHead': ('two_stage', 'TwoStage'),
    'CascadeRoIHead': ('two_stage', 'TwoStage'),
    'GFLHead': ('dense_heads', 'GeneralizedFocal'),
    'YOLOXHead': ('dense_heads', 'YOLOX'),
    'BaseDenseHead': ('dense_heads', 'SingleStage'),
    'DeformableDETRHead': ('detr', 'DeformableTransformer'),
}
#: Layers of mmcv.ops that standard operators express.
OPERATORS_OF_MMCV = ('RoIAlign', 'MultiScaleDeformableAttention')
#: The free axes of each output and their names.
AXES = dict(
    probabilities={0: 'batch'}, class_map={0: 'batch', 1: 'height', 2: 'width'}, boxes={0: 'batch', 1: 'objects'},
    scores={0: 'batch', 1: 'objects'}, labels={0: 'batch', 1: 'objects'}, masks={0: 'batch', 1: 'objects'})


class Normalize(nn.Module):
    """What a data_preprocessor does to images in a test: order of channels, mean, std and padding.

    It maps RGB images (B, H, W, 3) of bytes to the input (B, 3, padded H, padded W) of a model. The attributes of the
    host's preprocessors differ between libraries and versions, so what this module read from them is compared with what
    the preprocessor does to two images.

    Raises:
        ValueError: If the data_preprocessor does something else.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        # In mmsegmentation, test_cfg alone decides about padding in a test.
        padding = (getattr(preprocessor, 'test_cfg', None) or {} if hasattr(preprocessor, 'seg_pad_val') else
                   dict(size_divisor=getattr(preprocessor, 'pad_size_divisor', 1)))
        self.divisor = padding.get('size_divisor') or 1
        self.padded_size = padding.get('size')
        self.value = float(getattr(preprocessor, 'pad_val', getattr(preprocessor, 'pad_value', 0)))
        normalizes = hasattr(preprocessor, 'mean')
        self.register_buffer('mean', preprocessor.mean.clone() if normalizes else torch.zeros(3, 1, 1), False)
        self.register_buffer('std', preprocessor.std.clone() if normalizes else torch.ones(3, 1, 1), False)
        # OpenMMLab loads images as BGR.
        for self.flipped in (False, True):
            if all(self._does_as(preprocessor, size) for size in ((33, 50), (64, 31))):
                return
        raise ValueError(f'{type(preprocessor).__name__} cannot be expressed in an ONNX file: it does something else '
                         'to an image than a change of the order of channels, subtraction of the mean, division by '
                         'std and padding')

    def _does_as(self, preprocessor: nn.Module, size: tuple[int, int]) -> bool:
        images = torch.randint(0, 256, (2, *size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        ours = self(images)
        theirs = preprocessor(as_host_batch(images, preprocessor), False)['inputs']
        return isinstance(theirs, Tensor) and ours.shape == theirs.shape and torch.allclose(ours, theirs, 1e-5, 1e-5)

    @property
    def order(self) -> str:
        """Order of the channels of mean and std: 'RGB' or 'BGR'."""
        return 'BGR' if self.flipped else 'RGB'

    def forward(self, images: Tensor) -> Tensor:
        images = images.permute(0, 3, 1, 2)
        if self.flipped:
            images = images[:, [2, 1, 0]]
        images = (images.float() - self.mean) / self.std
        height, width = images.shape[2:]
        if self.padded_size is not None:
            below, right = (torch.as_tensor(size - length).clamp(min=0)
                            for size, length in zip(self.padded_size, (height, width)))
        elif self.divisor > 1:
            below, right = -height % self.divisor, -width % self.divisor
        else:
            return images
        return F.pad(images, (0, right, 0, below), value=self.value)


class Classifier(nn.Module):
    """A classifier of mmpretrain from normalized images to the probability of each class."""

    outputs = ('probabilities', )

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from mmpretrain.models import ClsHead, ImageClassifier
        require_methods(model, ImageClassifier, 'predict', 'extract_feat')
        require_methods(model.head, ClsHead, 'predict', '_get_predictions')
        self.model = model

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor]:
        return (self.model(images, mode='tensor').softmax(1), )


class AdaptiveAveragePool(nn.Module):
    """torch's AdaptiveAvgPool2d as products with matrices, which follow the size of the feature map in a graph."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.sizes = (height, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._weights(bins, length) for bins, length in zip(self.sizes, x.shape[2:]))
        return rows @ x @ columns.t()

    @staticmethod
    def _weights(bins: int, length: int | Tensor) -> Tensor:
        """The share (bins, length) that each pixel has in each bin."""
        pixels, starts = torch.arange(length), torch.arange(bins)[:, None]
        inside = (pixels >= starts * length // bins) & (pixels < ((starts + 1) * length + bins - 1) // bins)
        return inside.float() / inside.float().sum(1, keepdim=True)


class Upsample(nn.Module):
    """mmsegmentation's Upsample by a whole number, without the Python numbers that a trace would keep."""

    def __init__(self, upsample: nn.Module) -> None:
        super().__init__()
        if upsample.size or upsample.scale_factor != int(upsample.scale_factor):
            raise ValueError(f'Upsample with size={upsample.size} and scale_factor={upsample.scale_factor} cannot be '
                             'expressed in an ONNX file; what can be is a whole scale_factor')
        self.factor = int(upsample.scale_factor)
        self.mode, self.align_corners = upsample.mode, upsample.align_corners

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, [length * self.factor for length in x.shape[2:]], mode=self.mode,
                             align_corners=self.align_corners)


class WholeModel(nn.Module):
    """A model from RGB images (B, H, W, 3) of bytes to its answers.

    Attributes:
        outputs: Names of the answers.
        task: 'classification', 'detection' or 'segmentation'.
    """

    def __init__(self, normalize: Normalize, network: nn.Module, task: str) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network
        self.task = task
        self.outputs: tuple[str, ...] = network.outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = torch.stack([torch.as_tensor(length) for length in images.shape[1:3]]).float()
        return self.network(self.normalize(images), size)


def whole_model(model: nn.Module) -> WholeModel:
    """A model of mmdet, mmsegmentation or mmpretrain with its preprocessing and post-processing.

    Args:
        model: The model with its data_preprocessor, on the CPU. It stays as it is.

    Raises:
        ValueError: If the model cannot be expressed by standard operators of ONNX; the message names its class.
    """
    refuse_search(model)
    _refuse_operators_of_mmcv(model)
    model = _traceable(copy.deepcopy(model).eval())
    library = next((kind.__module__.partition('.')[0] for kind in type(model).__mro__
                    if kind.__module__.partition('.')[0] in ('mmdet', 'mmseg', 'mmpretrain')), None)
    if library == 'mmpretrain':
        network, task = Classifier(model), 'classification'
    elif library == 'mmseg':
        from partialnet_mm.deploy.segmentors import Segmentor
        network, task = Segmentor(model), 'segmentation'
    else:
        network, task = detector_exporter(model)(model), 'detection'
    return WholeModel(Normalize(model.data_preprocessor), network, task).eval()


def refuse_search(model: nn.Module) -> None:
    """Raises a ValueError for a model that still searches for its split ratios."""
    if any(isinstance(module, SplitGates) for module in model.modules()):
        raise ValueError('the PartialNet learns its split ratios (token_mixers="dpconv" or "dpconv_ch"), and its '
                         'layers have no sizes yet: tools/model_converters/dpconv_to_fixed.py makes the network to '
                         'export')


def _refuse_operators_of_mmcv(model: nn.Module) -> None:
    """Raises a ValueError for a layer of mmcv.ops that no exporter expresses: some fail while torch traces them."""
    for name, module in model.named_modules():
        if (any(kind.__module__.startswith('mmcv.ops.') for kind in type(module).__mro__)
                and type(module).__name__ not in OPERATORS_OF_MMCV):
            raise ValueError(f'{type(module).__name__} ({name}) cannot be expressed in an ONNX file; of the layers of '
                             f'mmcv.ops, what can be is {", ".join(OPERATORS_OF_MMCV)}')


def detector_exporter(model: nn.Module) -> type[nn.Module]:
    """The subclass of Detector that exports a detector of mmdet.

    Raises:
        ValueError: If there is none.
    """
    head = getattr(model, 'roi_head', None)
    if head is None:
        head = getattr(model, 'bbox_head', None)
    for kind in type(head).__mro__:
        if kind.__name__ in DETECTORS:
            module, name = DETECTORS[kind.__name__]
            return getattr(importlib.import_module(f'partialnet_mm.deploy.{module}'), name)
    missing = type(model if head is None else head).__name__
    raise ValueError(f'{missing} cannot be expressed in an ONNX file; what can be: {", ".join(DETECTORS)}')


def min_size(model: nn.Module) -> int:
    """Height and width that an image has at least, before padding, for a whole model or backbone."""
    least = max((module.min_size for module in model.modules() if isinstance(module, (PartialNet, Detector))),
                default=1)
    normalize = next((module for module in model.modules() if isinstance(module, Normalize)), None)
    if normalize is not None and min(normalize.padded_size or [normalize.divisor]) >= least:
        return 1
    return least


def as_host_batch(images: Tensor, preprocessor: nn.Module) -> dict:
    """RGB images (B, H, W, 3) of bytes as a batch of the host's data loader, unscaled, without annotations."""
    size = tuple(images.shape[1:3])
    metainfo = dict(img_shape=size, ori_shape=size, scale_factor=(1., 1.))
    library = next(kind.__module__.partition('.')[0] for kind in type(preprocessor).__mro__)
    module, name = dict(mmdet=('mmdet.structures', 'DetDataSample'), mmseg=('mmseg.structures', 'SegDataSample')).get(
        library, ('mmpretrain.structures', 'DataSample'))
    sample = getattr(importlib.import_module(module), name)
    return dict(inputs=[image.permute(2, 0, 1).flip(0) for image in images],
                data_samples=[sample(metainfo=metainfo.copy()) for _ in images])


def _traceable(model: nn.Module) -> nn.Module:
    """The model with modules in the place of those of which a trace would keep the size."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.AdaptiveAvgPool2d:
                size = child.output_size if isinstance(child.output_size, tuple) else (child.output_size, ) * 2
                if None not in size and size != (1, 1):
                    setattr(parent, name, AdaptiveAveragePool(*size))
            elif type(child).__name__ == 'Upsample' and type(child).__module__.startswith('mmseg.'):
                setattr(parent, name, Upsample(child))
    return model
