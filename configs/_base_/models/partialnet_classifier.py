# PartialNet with the paper's classifier: pooling, a layer to 1280, activation, a layer to the classes (Fig. 3).
# A config sets the backbone's arch, the head's in_channels (8 times the width of stage 1) and its activation.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='PartialNet', out_indices=(3, )),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=1000,
        mid_channels=[1280],
        act_cfg=dict(type='ReLU'),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.)),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.1), dict(type='CutMix', alpha=1.0)]))
