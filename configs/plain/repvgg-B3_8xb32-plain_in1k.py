_base_ = './repvgg-B2g4_8xb32-plain_in1k.py'

model = dict(backbone=dict(arch='B3'))
