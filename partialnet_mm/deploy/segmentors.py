# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Segmentors of mmsegmentation as functions that are exported as ONNX."""
import torch
from torch import Tensor, nn

from partialnet_mm.deploy.detector import require_methods


class Segmentor(nn.Module):
    """A segmentor from normalized images to the class of each pixel.

    With ``test_cfg.mode='slide'``, all windows of all images go through the network as one batch, so their number
    decides about the memory.

    Args:
        model: An EncoderDecoder of mmsegmentation in evaluation mode.

    Raises:
        ValueError: If it cannot be expressed; the message names the class or option.
    """

    outputs = ('class_map', )

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
        from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
        from mmseg.models.decode_heads.decode_head import BaseDecodeHead
        cascade = isinstance(model, CascadeEncoderDecoder)
        require_methods(model, CascadeEncoderDecoder if cascade else EncoderDecoder, 'predict', 'inference',
                        'whole_inference', 'slide_inference', 'encode_decode', 'postprocess_result')
        heads = list(model.decode_head) if cascade else [model.decode_head]
        require_methods(heads[-1], BaseDecodeHead, 'predict_by_feat')
        require_methods(heads[-1], BaseCascadeDecodeHead if cascade else BaseDecodeHead, 'predict')
        if model.out_channels > 256:
            raise ValueError(f'{type(model).__name__} with {model.out_channels} classes cannot be expressed in an ONNX '
                             'file: class_map is of bytes, which hold 256')
        self.model = model
        self.threshold = heads[-1].threshold
        self.windows = None
        if model.test_cfg.get('mode', 'whole') == 'slide':
            self.windows = [Windows(crop, stride) for crop, stride in zip(
                _pair(model.test_cfg.crop_size), _pair(model.test_cfg.stride))]

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor]:
        """The class (B, H, W), uint8, of each pixel of normalized and padded images.

        Args:
            images: (B, C, padded height, padded width).
            size: (H, W), the height and width before padding, in float.
        """
        logits = self._logits(images) if self.windows is None else self._logits_of_windows(images)
        logits = logits[:, :, :size[0].long(), :size[1].long()]
        if self.model.out_channels > 1:
            return (logits.argmax(1).to(torch.uint8), )
        return ((logits[:, 0].sigmoid() > self.threshold).to(torch.uint8), )

    def _logits(self, images: Tensor) -> Tensor:
        shape = (images.shape[2], images.shape[3])
        return self.model.encode_decode(images, [dict(img_shape=shape, pad_shape=shape)])

    def _logits_of_windows(self, images: Tensor) -> Tensor:
        """The mean of the logits of all windows that a pixel lies in."""
        batch, height, width = images.shape[0], images.shape[2], images.shape[3]
        (rows, row_terms), (columns, column_terms) = (
            windows(length) for windows, length in zip(self.windows, (height, width)))
        # (B, C, vertical windows, h, horizontal windows, w), then all windows as one batch
        windows = images[:, :, rows.flatten()][..., columns.flatten()]
        windows = windows.unflatten(3, columns.shape).unflatten(2, rows.shape).permute(0, 2, 4, 1, 3, 5)
        logits = self._logits(windows.reshape(-1, images.shape[1], rows.shape[1], columns.shape[1]))
        logits = logits.unflatten(0, (batch, rows.shape[0], columns.shape[0])).permute(1, 4, 2, 5, 0, 3)
        # (vertical windows, h, horizontal windows, w, B, classes), of which the windows are added up one axis at a time
        logits = _mean(logits.flatten(0, 1), row_terms).permute(1, 2, 0, 3, 4)
        return _mean(logits.flatten(0, 1), column_terms).permute(2, 3, 1, 0)


class Windows:
    """The positions of windows along one axis, for lengths that are known to the graph only.

    Args:
        crop: Length of a window. It is the axis' length where that is smaller.
        stride: Distance between windows. The last one is moved back to end with the axis.
    """

    def __init__(self, crop: int, stride: int) -> None:
        self.crop, self.stride = crop, stride
        #: The most windows that a pixel lies in; the last one, moved back, is one more.
        self.overlap = -(-crop // stride) + 1

    def __call__(self, length: int | Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Pixels (windows, crop) of each window; and, for each pixel, rows of the flat pixels that are the same pixel.

        The rows are pairs of tensors (length, ): the row, and whether there is one.
        """
        length = torch.as_tensor(length)
        crop = length.clamp(max=self.crop)
        number = (length - crop + self.stride - 1) // self.stride + 1
        starts = torch.minimum(torch.arange(number) * self.stride, length - crop)
        pixels = torch.arange(length)
        first = torch.minimum(((pixels - self.crop + self.stride) // self.stride).clamp(min=0), number - 1)
        terms = []
        for step in range(self.overlap):
            window = torch.minimum(first + step, number - 1)
            exists = (first + step < number) & (starts[window] <= pixels)
            inside = (pixels - starts[window]).clamp(min=0)
            terms.append((window * crop + inside, exists))
        return starts[:, None] + torch.arange(crop), terms


def _mean(values: Tensor, terms: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean (length, ...) of the rows of values that the terms name for each pixel."""
    shape = (-1, *[1] * (values.dim() - 1))
    total = sum(values[rows] * exists.to(values).reshape(shape) for rows, exists in terms)
    return total / sum(exists.to(values) for _, exists in terms).reshape(shape)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
