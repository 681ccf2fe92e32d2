# Table 13: FasterNet-M under PartialNet-M's recipe: partial convolution as token mixer, no attention.
_base_ = '../pretrain/partialnet_m_in1k.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dim=144, depths=(3, 4, 18, 3), num_heads=1, act_cfg=dict(type='ReLU')),
        token_mixers='partial_conv',
        mixer_residual=False,
        spatial_attention='none'),
    head=dict(in_channels=1152))
