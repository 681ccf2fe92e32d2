# Mask R-CNN, PartialNet-L, 1x schedule on COCO: column L of Table 7 of the paper.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
    backbone=dict(
        arch='l',
        drop_path_rate=0.3,
        # The checkpoint of configs/pretrain/partialnet_l_in1k.py after its 300 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/partialnet_l_in1k/epoch_300.pth', prefix='backbone.')),
    neck=dict(in_channels=[160, 320, 640, 1280]))

optim_wrapper = dict(optimizer=dict(lr=1e-4))
