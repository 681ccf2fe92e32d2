# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Segmentors of mmsegmentation as functions that are exported as ONNX."""
import torch
from torch import Tensor, nn

from partialnet_mm.deploy.detector import require_methods


class Segmentor(nn.Module):
    """A segmentor that sees the whole image at once, from normalized images to the class of each pixel.

    Args:
        model: An EncoderDecoder of mmsegmentation with ``test_cfg.mode='whole'``, in evaluation mode.

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
                        'whole_inference', 'encode_decode', 'postprocess_result')
        heads = list(model.decode_head) if cascade else [model.decode_head]
        require_methods(heads[-1], BaseDecodeHead, 'predict_by_feat')
        require_methods(heads[-1], BaseCascadeDecodeHead if cascade else BaseDecodeHead, 'predict')
        mode = model.test_cfg.get('mode', 'whole')
        if mode != 'whole':
            raise ValueError(f"{type(model).__name__} with test_cfg.mode={mode!r} cannot be expressed in an ONNX file: "
                             "the number of windows follows the image's size; test_cfg.mode='whole' can be")
        if model.out_channels > 256:
            raise ValueError(f'{type(model).__name__} with {model.out_channels} classes cannot be expressed in an ONNX '
                             'file: class_map is of bytes, which hold 256')
        self.model = model
        self.threshold = heads[-1].threshold

    def forward(self, images: Tensor, size: Tensor) -> tuple[Tensor]:
        """The class (B, H, W), uint8, of each pixel of normalized and padded images.

        Args:
            images: (B, C, padded height, padded width).
            size: (H, W), the height and width before padding, in float.
        """
        shape = (images.shape[2], images.shape[3])
        logits = self.model.encode_decode(images, [dict(img_shape=shape, pad_shape=shape)])
        logits = logits[:, :, :size[0].long(), :size[1].long()]
        if self.model.out_channels > 1:
            return (logits.argmax(1).to(torch.uint8), )
        return ((logits[:, 0].sigmoid() > self.threshold).to(torch.uint8), )
