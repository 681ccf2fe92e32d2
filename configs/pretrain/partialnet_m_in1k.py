# PartialNet-M on ImageNet-1k: column M of Table 8 of the paper.
_base_ = [
    '../_base_/models/partialnet_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_300e.py',
    '../_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(arch='m', drop_path_rate=0.2),
    head=dict(in_channels=1024),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.5), dict(type='CutMix', alpha=1.0)]))

optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=1.0))

train_pipeline = [
    *_base_.train_pipeline[:-1], dict(_base_.rand_augment, magnitude_level=7), _base_.train_pipeline[-1]
]
# 256 images on each of 8 GPUs: a batch of 2048.
train_dataloader = dict(batch_size=256, dataset=dict(pipeline=train_pipeline))
param_scheduler = [
    # from 1e-6 to 2e-3
    dict(type='LinearLR', start_factor=5e-4, by_epoch=True, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300)
]
auto_scale_lr = dict(base_batch_size=2048)
