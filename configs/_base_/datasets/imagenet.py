# ImageNet-1k in data/imagenet/{train,val}/<class>/, with the augmentation of Table 8 of the paper.
dataset_type = 'ImageNet'
data_root = 'data/imagenet/'
data_preprocessor = dict(
    num_classes=1000,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)

# The resolution of each training batch, the same on all GPUs. The official code's schedule instead:
# custom_hooks = [dict(type='TrainResolutionHook', schedule=[(0, 192), (280, 224)])]
custom_hooks = [dict(type='TrainResolutionHook', sizes=[128, 160, 192, 224, 256, 288])]
train_pipeline = [
    # Reads, crops, resizes and flips an image. The hook above sets the scale.
    dict(type='FastRandomResizedCrop', scale=224, interpolation='bicubic', flip_prob=0.5),
    dict(type='PackInputs')
]
# All variants except T0 insert it before PackInputs, each with its own magnitude_level.
rand_augment = dict(
    type='FastRandAugment',
    policies='timm_increasing',
    num_policies=2,
    total_level=10,
    magnitude_std=0.5,
    hparams=dict(pad_val=[104, 116, 124], interpolation='bicubic'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # A crop ratio of 0.9: 224 / 0.9, rounded down.
    dict(type='FastResizeEdge', scale=248, interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]
# 512 images on each of 8 GPUs: a batch of 4096. Workers send one tensor per batch: one per image would need an
# open file each, and 8 workers would reach the limit.
train_dataloader = dict(
    batch_size=512,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split='val', pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
