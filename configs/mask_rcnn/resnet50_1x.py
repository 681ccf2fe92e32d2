# Mask R-CNN, ResNet-50, 1x schedule on COCO: a control without weights of this project. mmdet's ResNet-50 with
# torchvision's weights, in the recipe of column S of Table 7. docs/coco.md tells what AP to expect, and from where.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
    # As in mmdet's mask-rcnn_r50_fpn_1x_coco: stage 1 frozen, norms in evaluation mode.
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(in_channels=[256, 512, 1024, 2048]))
