# MobileNetV2 on CIFAR-10, three epochs from random weights: the baseline of mobilenet_v2_patconv_cifar10.py.
_base_ = [
    '../_base_/models/mobilenet_v2_classifier.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/adamw_cifar10.py',
    '../_base_/runtime/classification.py',
]

model = dict(head=dict(num_classes=10))

train_cfg = dict(max_epochs=3)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=3)]
