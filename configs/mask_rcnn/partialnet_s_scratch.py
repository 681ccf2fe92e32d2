# Mask R-CNN, PartialNet-S from random weights on COCO: partialnet_t0_scratch.py with the larger network.
_base_ = './partialnet_t0_scratch.py'

# Stochastic depth as in the paper's column S (Table 7).
model = dict(backbone=dict(arch='s', drop_path_rate=0.15), neck=dict(in_channels=[96, 192, 384, 768]))
