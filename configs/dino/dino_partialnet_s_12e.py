# DINO with four scales, PartialNet-S, 12 epochs on COCO. The paper trains Mask R-CNN only: everything is mmdet's DINO.
_base_ = [
    '../_base_/models/dino_partialnet_4scale.py',
    '../_base_/datasets/coco_detection_ms_crop.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
    backbone=dict(
        arch='s',
        drop_path_rate=0.15,
        # The checkpoint of configs/pretrain/partialnet_s_in1k.py after its 300 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/partialnet_s_in1k/epoch_300.pth', prefix='backbone.')),
    neck=dict(in_channels=[192, 384, 768]))

# No warm-up, one step of the rate, clipped gradients, and a tenth of the rate for the backbone.
param_scheduler = [dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[11], gamma=0.1)]
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
