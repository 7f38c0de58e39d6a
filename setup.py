import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+?)'", (ROOT / 'mmdyrep' / 'version.py').read_text()).group(1)

MMPRETRAIN = ['mmengine>=0.10,<1.0', 'mmpretrain>=1.2,<2', 'setuptools<81']
MMDET = ['mmengine>=0.10,<1.0', 'mmdet>=3.3,<4', 'setuptools<81']
MMSEG = ['mmengine>=0.10,<1.0', 'mmsegmentation>=1.2.2,<2', 'ftfy', 'regex', 'setuptools<81']

setup(
    name='mmdyrep',
    version=VERSION,
    description='DyRep: dynamic structural re-parameterization for the OpenMMLab libraries',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='structural re-parameterization, DyRep, DBB, RepVGG, OpenMMLab, computer vision',
    packages=find_packages(include=('mmdyrep', 'mmdyrep.*')),
    # .mim holds links to configs, tools and model-index.yml, which a wheel gets as files
    package_data={'mmdyrep': ['py.typed', '.mim/model-index.yml', '.mim/configs/**/*', '.mim/tools/**/*']},
    exclude_package_data={'mmdyrep': ['.mim/**/__pycache__/*', '.mim/**/*.pyc']},
    python_requires='>=3.10',
    # neither mmengine nor what is built on it: there are two families of distributions for the same modules, and a
    # second one must not be put over the one that is there; `import mmdyrep` checks what it finds
    install_requires=['torch>=2.0', 'numpy', 'matplotlib', 'rich'],
    extras_require={
        'light': [*MMPRETRAIN, 'mmcv-lite>=2.0'],
        'mmpretrain': MMPRETRAIN,
        'mmdet': MMDET,
        'mmseg': MMSEG,
        'all': sorted({*MMPRETRAIN, *MMDET, *MMSEG}),
        'maintained': ['onedl-mmengine>=0.10.12,<1.0', 'onedl-mmpretrain>=1.3,<2',
                       'onedl-mmdetection>=3.5,<4', 'onedl-mmsegmentation>=1.4,<2', 'ftfy', 'regex'],
    },
    entry_points={'console_scripts': [
        f'mmdyrep-{name} = mmdyrep.commands:{name.replace("-", "_")}'
        for name in ('train', 'test', 'fuse', 'wrap', 'convert', 'complexity', 'plot-history', 'plot-structure')]},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in (10, 11, 12, 13)),
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
)
