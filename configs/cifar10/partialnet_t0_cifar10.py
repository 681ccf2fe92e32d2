# PartialNet-T0 on CIFAR-10, from random weights. fasternet_t0_cifar10.py is the baseline under the same recipe.
_base_ = [
    '../_base_/models/partialnet_classifier.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/adamw_cifar10.py',
    '../_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(arch='t0'),
    head=dict(num_classes=10, in_channels=256, act_cfg=dict(type='GELU')),
    train_cfg=None)
