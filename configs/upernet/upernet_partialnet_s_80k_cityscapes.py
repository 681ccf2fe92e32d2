# UPerNet, PartialNet-S, 80k iterations on Cityscapes, 2 images on each of 4 GPUs. The paper has no segmentation.
_base_ = [
    '../_base_/models/upernet_partialnet.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/adamw_160k_layer_decay.py',
    '../_base_/runtime/segmentation.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        arch='s',
        drop_path_rate=0.15,
        # The checkpoint of configs/pretrain/partialnet_s_in1k.py after its 300 epochs.
        init_cfg=dict(
            type='Pretrained', checkpoint='work_dirs/partialnet_s_in1k/epoch_300.pth', prefix='backbone.')),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=19),
    auxiliary_head=dict(in_channels=384, num_classes=19))

train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=80000)]
auto_scale_lr = dict(base_batch_size=8)
