# Table 4, + PAT_ch: channel attention in all four stages and no other.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(token_mixers='pat_ch', spatial_attention='none'))
