# Mask R-CNN, PartialNet-T2, 1x schedule on COCO. The paper trains S, M and L only. The schedule is that of its Table 7.
# Two settings are this project's, after the trend of the table: the learning rate of S, because the pretraining of T0
# to S has one rate too (Table 8), and stochastic depth, which falls by 0.05 per variant from 0.15 for S to 0 for T0.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_fpn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/adamw_1x.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(
    backbone=dict(
        arch='t2',
        drop_path_rate=0.1,
        # The checkpoint of configs/pretrain/partialnet_t2_in1k.py after its 300 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/partialnet_t2_in1k/epoch_300.pth', prefix='backbone.')),
    neck=dict(in_channels=[64, 128, 256, 512]))
