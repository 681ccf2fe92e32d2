# The search for split ratios, by which a config that trains a PartialNet becomes one that searches: docs/dpconv.md.
dpconv_search = dict(
    type='DPConvClassifier',
    backbone=dict(token_mixers='dpconv'),
    kappa=4,
    # The official files use -0.01, and name -0.02, -0.07 and -1 in comments.
    cost_exponent=-0.07,
    order_weight=0.9,
    warmup_epochs=20)
# Adam moves a gate by about the learning rate at each step, however small its gradient: the rate is such that gates may
# cross their range of [-1, 1] several times in all. Weight decay would draw them to 0, a coin toss.
dpconv_search_optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(split_gates=dict(lr_mult=0.05, decay_mult=0.))))
# By name beside the other default hooks: custom_hooks are a list, which the config may have already.
dpconv_search_hooks = dict(ratio=dict(type='RatioHook'))
