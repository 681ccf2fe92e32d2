# PartialNet-T0 on CIFAR-10 with the split ratios that DPConv learned within kappa=4: docs/dpconv.md.
_base_ = '../cifar10/partialnet_t0_cifar10.py'

model = dict(backbone=dict(split_ratio=[1, 1, 1, 1, 1, 1, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 16, 1 / 16, 1 / 16]))
