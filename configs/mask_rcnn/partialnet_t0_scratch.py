# Mask R-CNN, PartialNet-T0 from random weights on COCO: batch statistics over all GPUs, large-scale jitter, 100 epochs.
# The paper trains none. docs/coco.md tells what is mmdet's recipe here, and shows a small version of this config.
_base_ = [
    '../_base_/models/mask_rcnn_partialnet_scratch.py',
    '../_base_/datasets/coco_instance_lsj.py',
    '../_base_/schedules/adamw_lsj_100e.py',
    '../_base_/runtime/coco_detection.py',
]

model = dict(backbone=dict(arch='t0'), neck=dict(in_channels=[32, 64, 128, 256]))
