# Semantic FPN, PartialNet-L, 80k iterations on ADE20K. Only the backbone differs from PartialNet-S's config.
_base_ = './semantic_fpn_partialnet_s_80k_ade20k.py'

model = dict(
    backbone=dict(
        arch='l', drop_path_rate=0.2, init_cfg=dict(checkpoint='work_dirs/partialnet_l_in1k/epoch_300.pth')),
    neck=dict(in_channels=[160, 320, 640, 1280]))
