# PartialNet-T1 on ImageNet-1k: column T1 of Table 8 of the paper.
_base_ = [
    '../_base_/models/partialnet_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(arch='t1', drop_path_rate=0.02),
    head=dict(in_channels=384, act_cfg=dict(type='GELU')),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)]))

optim_wrapper = dict(optimizer=dict(weight_decay=0.01))

train_pipeline = [
    *_base_.train_pipeline[:-1], dict(_base_.rand_augment, magnitude_level=3), _base_.train_pipeline[-1]
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
