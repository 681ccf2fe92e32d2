# Table 4, first row: partial convolution and no attention.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(token_mixers='partial_conv', spatial_attention='none'))
