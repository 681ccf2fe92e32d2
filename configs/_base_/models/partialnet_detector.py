# The settings that one-stage detectors and DETRs share. Mask R-CNN and Cascade Mask R-CNN have another base.
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    # Stages 2 to 4 only: the norm of a feature map that no layer reads would get no gradient.
    backbone=dict(type='PartialNet', out_indices=(1, 2, 3)))
