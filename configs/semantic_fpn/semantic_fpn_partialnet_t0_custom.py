# Semantic FPN with PartialNet-T0 on images and label images of your own, on a GPU or a CPU:
#
#   python tools/train.py configs/semantic_fpn/semantic_fpn_partialnet_t0_custom.py --cfg-options \
#       img_dir=my_data/img_dir ann_dir=my_data/ann_dir "classes=['background','road']" \
#       checkpoint=partialnet_t0_in1k.pth
#
# img_dir and ann_dir contain train/ and val/. docs/own_data.md describes the settings.
_base_ = [
    '../_base_/models/semantic_fpn_partialnet.py',
    '../_base_/datasets/own_semantic.py',
    '../_base_/runtime/own_segmentation.py',
    '../_base_/schedules/adamw_own_data.py',
]

# SyncBN does not run on a CPU.
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size='auto'),
    backbone=dict(arch='t0', norm_cfg=norm_cfg),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=64,
        norm_cfg=norm_cfg,
        num_classes=19,
        # The mean is over the pixels that have a class.
        loss_decode=dict(avg_non_ignore=True)))
