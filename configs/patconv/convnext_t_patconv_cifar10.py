# ConvNeXt-T with PATConv on CIFAR-10, otherwise as convnext_t_cifar10.py (the networks of Table 5 of the paper).
_base_ = './convnext_t_cifar10.py'

model = dict(backbone=dict(type='PATConvNeXt'))
