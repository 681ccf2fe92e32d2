# Table 4's row "+ PAT_ch + PAT_sp", trained on CIFAR-10: channel attention in all four stages, no self-attention.
_base_ = './partialnet_t0_ch_sp_sf_cifar10.py'

model = dict(backbone=dict(token_mixers='pat_ch'))
