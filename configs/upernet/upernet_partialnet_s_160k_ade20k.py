# UPerNet, PartialNet-S, 160k iterations on ADE20K, 2 images on each of 8 GPUs. The paper has no segmentation.
_base_ = [
    '../_base_/models/upernet_partialnet.py',
    '../_base_/datasets/ade20k.py',
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
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=150),
    auxiliary_head=dict(in_channels=384, num_classes=150),
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 341)))

train_dataloader = dict(batch_size=2)
