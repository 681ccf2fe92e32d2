# Mask R-CNN, FasterNet-S, 1x schedule on COCO: a control with published weights and a published result, 39.9 box and
# 36.9 mask AP (FasterNet's repository and paper; Table 11 of PartialNet's paper quotes it). FasterNet's own config has
# the settings of column S of Table 7.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
    backbone=dict(
        arch=dict(embed_dim=128, depths=(1, 2, 13, 2), num_heads=1, act_cfg=dict(type='ReLU')),
        token_mixers='partial_conv',
        spatial_attention='none',
        mixer_residual=False,
        drop_path_rate=0.15,
        # FasterNet's public weights, converted: docs/coco.md has the command.
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/fasternet_s_in1k/public.pth', prefix='backbone.')),
    neck=dict(in_channels=[128, 256, 512, 1024]))
