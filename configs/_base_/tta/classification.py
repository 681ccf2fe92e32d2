# Test-time augmentation, tools/test.py --tta: the mean of the scores for each image and for its mirror image.
tta_model = dict(type='AverageClsScoreTTA')
