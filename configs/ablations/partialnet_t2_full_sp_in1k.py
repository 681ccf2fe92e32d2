# Table 3, P-F-P: spatial attention over all channels.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(spatial_attention='full'))
