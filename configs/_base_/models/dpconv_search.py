# The search for split ratios: added to a config that trains a PartialNet, it turns it into a search (docs/dpconv.md).
dpconv_search = dict(
    type='DPConvClassifier',
    backbone=dict(token_mixers='dpconv'),
    kappa=4,
    # The official files use -0.01 and mention -0.02, -0.07 and -1 in comments.
    cost_exponent=-0.07,
    order_weight=0.9,
    warmup_epochs=20)
# Adam moves a gate by about the learning rate at each step, however small its gradient: at this rate, gates can
# cross their range of [-1, 1] several times in all. Weight decay would pull them to 0, where the choice is random.
dpconv_search_optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(split_gates=dict(lr_mult=0.05, decay_mult=0.))))
# A default hook, because custom_hooks is a list that the config may already have.
dpconv_search_hooks = dict(ratio=dict(type='RatioHook'))
