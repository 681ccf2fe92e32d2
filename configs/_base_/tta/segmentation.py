# Test-time augmentation, tools/test.py --tta: the mean of the probabilities for six sizes of each image and for their
# mirror images. The sizes are multiples of the test pipeline's; a config may set tta_pipeline instead.
tta_model = dict(type='SegTTAModel')
tta_ratios = [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
