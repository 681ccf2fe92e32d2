# MobileNetV2 with PATConv for its depthwise 3x3 convolutions (Table 5 of the paper) on ImageNet-1k.
# The recipe is mmpretrain's mobilenet-v2_8xb32_in1k; the paper does not state its own.
_base_ = [
    '../_base_/models/mobilenet_v2_classifier.py',
    '../_base_/datasets/imagenet_plain.py',
    '../_base_/runtime/classification.py',
]

model = dict(backbone=dict(conv_cfg=dict(type='PATConv')))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = dict(type='StepLR', by_epoch=True, step_size=1, gamma=0.98)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.045, momentum=0.9, weight_decay=4e-5))
auto_scale_lr = dict(enable=False, base_batch_size=256)
