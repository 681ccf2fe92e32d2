# Table 3's F-F-F, trained on CIFAR-10: each attention over all channels. partialnet_t0_ch_sp_sf_cifar10.py is P-P-P.
_base_ = './partialnet_t0_ch_sp_sf_cifar10.py'

model = dict(backbone=dict(token_mixers=('full_ch', 'full_ch', 'full_ch', 'full_sf'), spatial_attention='full'))
