# UPerNet, PartialNet-M, 160k iterations on ADE20K. Only the backbone differs from PartialNet-S's config.
_base_ = './upernet_partialnet_s_160k_ade20k.py'

model = dict(
    backbone=dict(
        arch='m', drop_path_rate=0.2, init_cfg=dict(checkpoint='work_dirs/partialnet_m_in1k/epoch_300.pth')),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512))

# It has more blocks than S: with this decay rate its stem also learns at 0.15 of the full rate.
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.93))
