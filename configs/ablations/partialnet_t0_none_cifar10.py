# Table 4's first row, no attention, by learning: partial convolution alone.
_base_ = './partialnet_t0_ch_sp_sf_cifar10.py'

model = dict(backbone=dict(token_mixers='partial_conv', spatial_attention='none'))
