# ATSS, PartialNet-S, 1x schedule on COCO. The paper trains Mask R-CNN only: batch and schedule are those of its
# Table 7, the learning rate is half of that, as mmdet halves it for this detector with ResNet-50.
_base_ = [
    '../_base_/models/atss_partialnet_fpn.py',
    '../_base_/datasets/coco_detection.py',
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

optim_wrapper = dict(optimizer=dict(lr=1e-4))
