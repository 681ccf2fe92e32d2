# RTMDet-m with PartialNet-S on COCO-format data of your own, boxes only. The settings are those of
# rtmdet_partialnet_t0_custom.py.
_base_ = [
    '../_base_/models/rtmdet_partialnet.py',
    '../_base_/datasets/own_coco_detection.py',
    '../_base_/runtime/own_detection.py',
    '../_base_/schedules/adamw_own_data.py',
]

# SyncBN does not run on a CPU.
norm_cfg = dict(type='BN')
model = dict(
    # The neck adds feature maps of neighbouring strides.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(arch='s', drop_path_rate=0.15, norm_cfg=norm_cfg),
    neck=dict(norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg))
