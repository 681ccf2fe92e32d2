_base_ = ['./default.py', '../tta/segmentation.py']

default_scope = 'mmseg'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=8000),
    # mmsegmentation 1.2 would draw every 50th batch only, also for tools/test.py --show-dir
    visualization=dict(type='SegVisualizationHook', interval=1))
# All crops have the same size.
env_cfg = dict(cudnn_benchmark=True)
visualizer = dict(type='SegLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
