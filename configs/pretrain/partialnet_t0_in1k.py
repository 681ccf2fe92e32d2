# PartialNet-T0 on ImageNet-1k: column T0 of Table 8 of the paper.
_base_ = [
    '../_base_/models/partialnet_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(arch='t0', drop_path_rate=0),
    head=dict(in_channels=256, act_cfg=dict(type='GELU')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.05), dict(type='CutMix', alpha=1.0)]))
