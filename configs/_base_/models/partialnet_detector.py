# What one-stage detectors and DETRs have in common. Mask R-CNN and Cascade Mask R-CNN have a base of their own.
model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    # Stages 2 to 4 only: a map that no layer reads would have a norm without a gradient.
    backbone=dict(type='PartialNet', out_indices=(1, 2, 3)))
