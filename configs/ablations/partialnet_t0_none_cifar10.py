# Table 4's first row, trained on CIFAR-10: partial convolution and no attention.
_base_ = './partialnet_t0_ch_sp_sf_cifar10.py'

model = dict(backbone=dict(token_mixers='partial_conv', spatial_attention='none'))
