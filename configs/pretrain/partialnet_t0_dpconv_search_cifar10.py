# The search for PartialNet-T0's split ratios on CIFAR-10 (Sec. 3.2 of the paper); --cfg-options model.kappa=8.
_base_ = ['./partialnet_t0_cifar10.py', '../_base_/models/dpconv_search.py']

model = dict(_base_.dpconv_search, warmup_epochs=2)
# A hundredth of ImageNet's time.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(split_gates=dict(lr_mult=5, decay_mult=0.))))
default_hooks = _base_.dpconv_search_hooks
