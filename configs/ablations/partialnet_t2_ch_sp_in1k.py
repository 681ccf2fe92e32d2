# Table 4, + PAT_ch + PAT_sp: channel attention in all four stages, no self-attention.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(token_mixers='pat_ch'))
