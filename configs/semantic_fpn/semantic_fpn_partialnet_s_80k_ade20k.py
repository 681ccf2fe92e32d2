# Semantic FPN, PartialNet-S, 80k iterations on ADE20K, 4 images on each of 4 GPUs. The paper has no segmentation.
_base_ = [
    '../_base_/models/semantic_fpn_partialnet.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_80k.py',
    '../_base_/runtime/segmentation.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        arch='s',
        drop_path_rate=0.1,
        # The checkpoint of configs/pretrain/partialnet_s_in1k.py after its 300 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/partialnet_s_in1k/epoch_300.pth', prefix='backbone.')),
    neck=dict(in_channels=[96, 192, 384, 768]),
    decode_head=dict(num_classes=150))
