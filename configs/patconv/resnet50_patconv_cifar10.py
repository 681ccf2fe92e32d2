# ResNet-50 with PATConv on CIFAR-10, otherwise as resnet50_cifar10.py (the networks of Table 5 of the paper).
_base_ = './resnet50_cifar10.py'

model = dict(backbone=dict(conv_cfg=dict(type='PATConv')))
