# ConvNeXt-T with PATConv on CIFAR-10, otherwise as convnext_t_cifar10.py (Table 5 of the paper, by learning).
_base_ = './convnext_t_cifar10.py'

model = dict(backbone=dict(type='PATConvNeXt'))
