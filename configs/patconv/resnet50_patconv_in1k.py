# ResNet-50 with PATConv for its 3x3 convolutions (Table 5 of the paper) on ImageNet-1k.
# The recipe is mmpretrain's resnet50_8xb32_in1k; the paper does not state its own.
_base_ = [
    '../_base_/models/resnet50_classifier.py',
    '../_base_/datasets/imagenet_plain.py',
    '../_base_/runtime/classification.py',
]

model = dict(backbone=dict(conv_cfg=dict(type='PATConv')))

train_cfg = dict(by_epoch=True, max_epochs=100, val_interval=1)
val_cfg = dict()
test_cfg = dict()
param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4))
auto_scale_lr = dict(enable=False, base_batch_size=256)
