# The search for PartialNet-T0's split ratios on CIFAR-10 (Sec. 3.2 of the paper); --cfg-options model.kappa=8.
_base_ = ['../cifar10/partialnet_t0_cifar10.py', '../_base_/models/dpconv_search.py']

# Settings for a hundredth of ImageNet's iterations: all channels at the start, a strong penalty, and a high rate for
# the gates.
model = dict(_base_.dpconv_search, warmup_epochs=2, start_kappa=1, cost_exponent=-0.3)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(split_gates=dict(lr_mult=5, decay_mult=0.))))
default_hooks = _base_.dpconv_search_hooks
