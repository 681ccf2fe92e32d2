# Table 12: SRM instead of the Gaussian gate.
_base_ = '../pretrain/partialnet_t2_in1k.py'

model = dict(backbone=dict(gate='srm'))
