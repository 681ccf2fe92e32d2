# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""The figures of the paper that can be counted, each with the network that it belongs to here."""
from typing import NamedTuple


class Figure(NamedTuple):
    """One row of one of the paper's tables.

    ``network`` is a config below ``configs/``, or ``timm:NAME``,
    ``torchvision:NAME``, ``mmdet:CONFIG`` for a network of another library.
    ``params`` (M) and ``flops`` (G, multiply-adds; None where not printed) are
    the paper's, as text, since their digits say how far they are rounded.
    Where the paper is known to be off, ``counted`` is what this project
    counts, parameters and multiply-adds, and ``reason`` says why; a count that
    is neither near the paper's nor near that one is an error.
    """

    table: str
    name: str
    network: str
    params: str
    flops: str | None
    latency: float | None = None
    size: tuple[int, int] = (224, 224)
    counted: tuple[float | None, float | None] = (None, None)
    reason: str = ''
    options: dict = {}


APPENDIX = ('the appendix prints the blocks 1, 2, 8, 2 of FasterNet; 1, 2, 6, 4 gives the printed sizes, and is what '
            "arch='{}' has")
OWN_PAPER = "the paper quotes the network's own publication, which rounds or counts otherwise"
HEADS = ("the paper's counter is not said; it gives 6 G less than this one for the heads of every Mask R-CNN, whatever "
         'the backbone')
BACKBONE = (f'{HEADS}; the further 8, 13 and 19 G for S, M and L are what the products of attention over 1000 places '
            'and its qkv layer come to, 8.6, 13.2 and 18.7 G, which many counters do not see')


def _fasternet(embed_dim: int, depths: tuple[int, ...]) -> dict:
    return {'model.backbone.arch': dict(embed_dim=embed_dim, depths=depths, num_heads=1, act_cfg=dict(type='ReLU')),
            'model.backbone.token_mixers': 'partial_conv', 'model.backbone.spatial_attention': 'none',
            'model.neck.in_channels': [embed_dim * 2**i for i in range(4)]}


COCO = (800, 1280)
FIGURES: list[Figure] = [
    Figure('1', 'PartialNet-T0', 'pretrain/partialnet_t0_in1k.py', '4.3', '0.25', 12.2),
    Figure('1', 'PartialNet-T1', 'pretrain/partialnet_t1_in1k.py', '7.8', '0.55', 21.5),
    Figure('1', 'PartialNet-T2', 'pretrain/partialnet_t2_in1k.py', '12.6', '1.03', 35.2),
    Figure('1', 'PartialNet-S', 'pretrain/partialnet_s_in1k.py', '29.0', '2.71', 72.5),
    Figure('1', 'PartialNet-M', 'pretrain/partialnet_m_in1k.py', '61.3', '6.69', 155.3),
    Figure('1', 'PartialNet-L', 'pretrain/partialnet_l_in1k.py', '104.3', '11.91', 272.5),
    Figure('1', 'FasterNet-T0', 'timm:fasternet_t0', '3.9', '0.34', 10.5),
    Figure('1', 'FasterNet-T1', 'timm:fasternet_t1', '7.6', '0.85', 22.2),
    Figure('1', 'FasterNet-T2', 'timm:fasternet_t2', '15.0', '1.91', 43.7),
    Figure('1', 'FasterNet-S', 'timm:fasternet_s', '31.1', '4.56', 96.0),
    Figure('1', 'FasterNet-M', 'timm:fasternet_m', '53.5', '8.74', 181.6),
    Figure('1', 'FasterNet-L', 'timm:fasternet_l', '93.5', '15.52', 312.5),
    Figure('1', 'ShuffleNetV2 x1.5', 'torchvision:shufflenet_v2_x1_5', '3.5', '0.30', 13.7),
    Figure('1', 'ShuffleNetV2 x2', 'torchvision:shufflenet_v2_x2_0', '7.4', '0.59', 22.6,
           counted=(None, .583), reason=OWN_PAPER),
    Figure('1', 'MobileNetV2', 'timm:mobilenetv2_100', '3.5', '0.31', 13.7, counted=(None, .301), reason=OWN_PAPER),
    Figure('1', 'MobileNetV2 x1.4', 'timm:mobilenetv2_140', '6.1', '0.60', 21.7,
           counted=(None, .582), reason=OWN_PAPER),
    Figure('10', 'MobileViT-XXS', 'timm:mobilevit_xxs', '1.3', '0.42', 16.7, (256, 256), (None, .407), OWN_PAPER),
    Figure('10', 'MobileViT-XS', 'timm:mobilevit_xs', '2.3', '1.05', 32.8, (256, 256), (None, 1.026), OWN_PAPER),
    Figure('10', 'MobileViT-S', 'timm:mobilevit_s', '5.6', '2.03', 52.4, (256, 256), (None, 2.001), OWN_PAPER),
    Figure('1', 'MobileViTv2-0.5', 'timm:mobilevitv2_050', '1.4', '0.46', 15.8, (256, 256)),
    Figure('1', 'MobileViTv2-1.0', 'timm:mobilevitv2_100', '4.9', '1.85', 41.5, (256, 256), (None, 1.812), OWN_PAPER),
    Figure('10', 'MobileViTv2-1.5', 'timm:mobilevitv2_150', '10.6', '4.00', 104.4,
           (256, 256), (None, 4.042), OWN_PAPER),
    Figure('1', 'MobileViTv2-2.0', 'timm:mobilevitv2_200', '18.5', '7.50', 103.7, (256, 256), (None, 7.156), OWN_PAPER),
    Figure('10', 'GhostNet x1.3', 'timm:ghostnet_130', '7.4', '0.24', 16.7, counted=(None, .227), reason=OWN_PAPER),
    Figure('1', 'EfficientNet-B0', 'timm:efficientnet_b0', '5.3', '0.39', 22.7),
    Figure('1', 'EfficientNet-B1', 'timm:efficientnet_b1', '7.8', '0.70', 35.5, (240, 240), (None, .687), OWN_PAPER),
    Figure('1', 'EfficientNet-B3', 'timm:efficientnet_b3', '12.0', '1.80', 73.5, (300, 300), (12.23, 1.827), OWN_PAPER),
    Figure('1', 'EfficientNet-B4', 'timm:efficientnet_b4', '19.0', '4.20', 156.9,
           (380, 380), (19.34, 4.394), OWN_PAPER),
    Figure('1', 'EfficientNet-B5', 'timm:efficientnet_b5', '30.0', '9.90', 333.3,
           (456, 456), (30.39, 10.266), OWN_PAPER),
    Figure('1', 'EfficientViT-B1', 'timm:efficientvit_b1', '9.1', '0.52', 25.7),
    Figure('10', 'EfficientViT-B1-192', 'timm:efficientvit_b1', '9.1', '0.38', 19.3, (192, 192)),
    Figure('1', 'ResNet-50', 'timm:resnet50', '25.6', '4.11', 94.8),
    Figure('1', 'PoolFormer-S12', 'timm:poolformer_s12', '11.9', '1.82', 56.1),
    Figure('1', 'PoolFormer-S36', 'timm:poolformer_s36', '30.9', '5.00', 152.4),
    Figure('1', 'PoolFormer-M36', 'timm:poolformer_m36', '56.2', '8.80', 244.3),
    Figure('1', 'PoolFormer-M48', 'timm:poolformer_m48', '73.5', '11.59', 322.3),
    Figure('1', 'Swin-T', 'timm:swin_tiny_patch4_window7_224', '28.3', '4.51', 107.1),
    Figure('1', 'Swin-S', 'timm:swin_small_patch4_window7_224', '49.6', '8.77', 199.1),
    Figure('1', 'Swin-B', 'timm:swin_base_patch4_window7_224', '87.8', '15.47', 333.8),
    Figure('10', 'ConvNeXt-T', 'timm:convnext_tiny', '28.6', '4.47', 99.4),
    Figure('10', 'ConvNeXt-S', 'timm:convnext_small', '50.2', '8.71', 185.5),
    Figure('1', 'ConvNeXt-B', 'timm:convnext_base', '88.6', '15.38', 317.1),
    Figure('2', 'Mask R-CNN, PartialNet-S', 'mask_rcnn/partialnet_s_1x.py', '46.9', '216', None,
           COCO, (46.99, 230.6), BACKBONE),
    Figure('2', 'Mask R-CNN, PartialNet-M', 'mask_rcnn/partialnet_m_1x.py', '78.2', '295', None, COCO, (79.18, 314.0),
           f'78.2 M is a misprint: the classifier has 61.3 M, and S and L leave 17.6 to 18.0 M for the rest; '
           f'{BACKBONE}'),
    Figure('2', 'Mask R-CNN, PartialNet-L', 'mask_rcnn/partialnet_l_1x.py', '122.0', '397', None,
           COCO, (122.07, 422.7), BACKBONE),
    Figure('2', 'Mask R-CNN, ResNet-50', 'mmdet:mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '44.2', '253', None, COCO,
           (44.40, 259.3), HEADS),
    Figure('2', 'Mask R-CNN, ResNet-101', 'mmdet:mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py', '63.2', '329', None, COCO,
           (63.39, 335.1), HEADS),
    Figure('2', 'Mask R-CNN, FasterNet-S', 'mask_rcnn/partialnet_s_1x.py', '49.0', '258', None, COCO, (None, 264.8),
           HEADS, _fasternet(128, (1, 2, 13, 2))),
    Figure('2', 'Mask R-CNN, FasterNet-M', 'mask_rcnn/partialnet_m_1x.py', '71.2', '344', None, COCO, (None, 350.4),
           HEADS, _fasternet(144, (3, 4, 18, 3))),
    Figure('2', 'Mask R-CNN, FasterNet-L', 'mask_rcnn/partialnet_l_1x.py', '110.9', '484', None, COCO, (None, 490.1),
           HEADS, _fasternet(192, (3, 4, 18, 3))),
    Figure('3', 'P-P-P', 'pretrain/partialnet_t2_in1k.py', '12.6', '1.03', 35.2),
    Figure('3', 'F-P-P', 'ablations/partialnet_t2_full_ch_in1k.py', '13.0', '1.04', 36.5),
    Figure('3', 'P-F-P', 'ablations/partialnet_t2_full_sp_in1k.py', '12.6', '1.04', 35.6),
    Figure('3', 'P-P-F', 'ablations/partialnet_t2_full_sf_in1k.py', '14.5', '1.12', 38.6),
    Figure('4', 'none', 'ablations/partialnet_t2_none_in1k.py', '11.1', '0.92', 25.7, counted=(9.41, .909),
           reason="11.1 M is the next row's: without the gates there are 9.41 M"),
    Figure('4', '+ ch', 'ablations/partialnet_t2_ch_in1k.py', '11.1', '0.92', 30.9, counted=(None, .911),
           reason='norms, which the paper counts at two operations an element, are left out here'),
    Figure('4', '+ ch + sp', 'ablations/partialnet_t2_ch_sp_in1k.py', '11.5', '0.92', 31.7),
    Figure('4', '+ ch + sp + sf', 'pretrain/partialnet_t2_in1k.py', '12.6', '1.03', 35.2),
    Figure('6', 'PAT_ch', 'pretrain/partialnet_t2_in1k.py', '12.6', '1.03', 35.2),
    Figure('6', 'Conv', 'ablations/partialnet_t2_conv_in1k.py', '15.8', '2.12', 49.9),
    Figure('6', 'DWConv', 'ablations/partialnet_t2_depthwise_in1k.py', '15.8', '1.28', 35.4, counted=(15.4, 1.30),
           reason='the paper does not say how far it is widened'),
    Figure('9', 'PartialNet-T0 as printed', 'pretrain/partialnet_t0_in1k.py', '4.3', '0.25', None,
           counted=(3.558, .233),
           reason=APPENDIX.format('t0'), options={'model.backbone.arch': 't0-appendix'}),
    Figure('9', 'PartialNet-T1 as printed', 'pretrain/partialnet_t1_in1k.py', '7.8', '0.55', None,
           counted=(6.145, .518),
           reason=APPENDIX.format('t1'), options={'model.backbone.arch': 't1-appendix'}),
    Figure('9', 'PartialNet-L', 'pretrain/partialnet_l_in1k.py', '104.4', '11.91'),
    Figure('12', 'SRM', 'ablations/partialnet_t2_srm_in1k.py', '12.2', '1.03', 35.2),
    Figure('12', 'SE', 'ablations/partialnet_t2_se_in1k.py', '12.3', '1.04', 32.3),
    Figure('12', 'PAT', 'pretrain/partialnet_t2_in1k.py', '12.6', '1.03', 35.2),
    Figure('13', 'FasterNet-T0, this code', 'ablations/fasternet_t0_in1k.py', '3.9', '0.34', 10.5),
    Figure('13', 'FasterNet-T1, this code', 'ablations/fasternet_t1_in1k.py', '7.6', '0.85', 22.2),
    Figure('13', 'FasterNet-T2, this code', 'ablations/fasternet_t2_in1k.py', '15.0', '1.91', 43.7),
    Figure('13', 'FasterNet-S, this code', 'ablations/fasternet_s_in1k.py', '31.1', '4.56', 96.0),
    Figure('13', 'FasterNet-M, this code', 'ablations/fasternet_m_in1k.py', '53.5', '8.74', 181.6),
    Figure('13', 'FasterNet-L, this code', 'ablations/fasternet_l_in1k.py', '93.5', '15.52', 312.5),
]
