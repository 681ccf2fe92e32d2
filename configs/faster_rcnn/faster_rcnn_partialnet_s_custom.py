# Faster R-CNN with PartialNet-S, as wide as mmdet's, on COCO-format data of your own: for a GPU, from a checkpoint of
# the pretraining. The settings are those of faster_rcnn_partialnet_t0_custom.py.
_base_ = [
    '../_base_/models/faster_rcnn_partialnet_fpn.py',
    '../_base_/datasets/own_coco_detection.py',
    '../_base_/runtime/own_detection.py',
    '../_base_/schedules/adamw_own_data.py',
]

model = dict(
    # From random weights, the batch norms must be trained.
    backbone=dict(arch='s', drop_path_rate=0.15, norm_eval=False, train_folded=False),
    neck=dict(in_channels=[96, 192, 384, 768]))
