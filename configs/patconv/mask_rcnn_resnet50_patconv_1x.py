# Mask R-CNN, ResNet-50 with PATConv for its 3x3 convolutions, 1x schedule on COCO.
# The recipe is mmdet's mask-rcnn_r50_fpn_1x_coco: stage 1 frozen, norms in evaluation mode, SGD.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
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
        conv_cfg=dict(type='PATConv'),
        # The checkpoint of configs/patconv/resnet50_patconv_in1k.py after its 100 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/resnet50_patconv_in1k/epoch_100.pth', prefix='backbone.')),
    neck=dict(in_channels=[256, 512, 1024, 2048]))

optim_wrapper = dict(optimizer=dict(_delete_=True, type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4))
