# UPerNet, PartialNet-M, 160k iterations on ADE20K. All but the backbone is PartialNet-S's.
_base_ = './upernet_partialnet_s_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='m', drop_path_rate=0.2, init_cfg=dict(checkpoint='work_dirs/partialnet_m_in1k/epoch_300.pth')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))

# More blocks than S: with this the stem learns at the same 0.15 of the rate.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.93))
