# Test-time augmentation, tools/test.py --tta: boxes of three sizes of each image and of their mirror images, merged by
# non-maximum suppression. The sizes are multiples of the test pipeline's; a config may set tta_pipeline instead.
tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
tta_ratios = [0.75, 1.0, 1.25]
