# Table 4's last row, the whole PartialNet, trained on CIFAR-10 for three epochs. The base of the other rows.
_base_ = '../cifar10/partialnet_t0_cifar10.py'

train_cfg = dict(max_epochs=3)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=3)]
