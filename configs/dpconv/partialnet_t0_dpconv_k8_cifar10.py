# PartialNet-T0 on CIFAR-10 with the split ratios that DPConv learned within kappa=8: docs/dpconv.md.
_base_ = '../cifar10/partialnet_t0_cifar10.py'

model = dict(backbone=dict(
    split_ratio=[1, 1, 1, 1 / 2, 1 / 2, 1 / 2, 1 / 32, 1 / 32, 1 / 32, 1 / 64, 1 / 32, 1 / 32, 1 / 32]))
