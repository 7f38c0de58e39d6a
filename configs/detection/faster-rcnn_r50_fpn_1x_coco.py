# mmdet's Faster R-CNN, the plain twin of the others here
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', '../_base_/dyrep.py']

# twins draw the same random numbers
default_hooks = dict(random_state=dict(type='RandomStateHook'))
randomness = dict(seed=1)
