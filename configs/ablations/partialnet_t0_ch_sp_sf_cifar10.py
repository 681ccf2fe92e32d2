# Table 4's last row, all of PartialNet, by learning: the base of the other rows. CIFAR-10, three epochs.
_base_ = '../cifar10/partialnet_t0_cifar10.py'

train_cfg = dict(max_epochs=3)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=3)]
