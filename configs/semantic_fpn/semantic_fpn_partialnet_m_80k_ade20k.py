# Semantic FPN, PartialNet-M, 80k iterations on ADE20K. Only the backbone differs from PartialNet-S's config.
_base_ = './semantic_fpn_partialnet_s_80k_ade20k.py'

model = dict(
    backbone=dict(
        arch='m', drop_path_rate=0.15, init_cfg=dict(checkpoint='work_dirs/partialnet_m_in1k/epoch_300.pth')),
    neck=dict(in_channels=[128, 256, 512, 1024]))
