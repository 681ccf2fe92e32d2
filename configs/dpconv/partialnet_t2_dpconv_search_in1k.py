# The search for PartialNet-T2's split ratios on ImageNet-1k (Sec. 3.2 of the paper), by the recipe of its pretraining.
_base_ = ['../pretrain/partialnet_t2_in1k.py', '../_base_/models/dpconv_search.py']

model = _base_.dpconv_search
optim_wrapper = _base_.dpconv_search_optim_wrapper
default_hooks = _base_.dpconv_search_hooks
