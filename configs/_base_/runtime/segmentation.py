_base_ = './default.py'

default_scope = 'mmseg'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=8000),
    # mmsegmentation 1.2 would draw each 50th batch only, of tools/test.py --show-dir too
    visualization=dict(type='SegVisualizationHook', interval=1))
# Crops are of one size.
env_cfg = dict(cudnn_benchmark=True)
visualizer = dict(type='SegLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
