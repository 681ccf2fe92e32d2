# Table 12: squeeze-and-excitation instead of the Gaussian gate.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(gate='se'))
