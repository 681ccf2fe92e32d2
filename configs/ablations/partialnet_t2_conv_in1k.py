# Table 6, regular: a 3x3 convolution of all channels instead of PAT_ch.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(token_mixers=('conv', 'conv', 'conv', 'pat_sf')))
