import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+?)'", (ROOT / 'mmdyrep' / 'version.py').read_text()).group(1)

setup(
    name='mmdyrep',
    version=VERSION,
    description='DyRep: dynamic structural re-parameterization for the OpenMMLab libraries',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='structural re-parameterization, DyRep, DBB, RepVGG, OpenMMLab, computer vision',
    packages=find_packages(include=('mmdyrep', 'mmdyrep.*')),
    include_package_data=True,
    python_requires='>=3.8',
    install_requires=['torch>=2.0', 'mmengine>=0.10,<1.0', 'matplotlib', 'rich'],
    extras_require={
        'mmpretrain': ['mmpretrain>=1.2,<2'],
        'mmdet': ['mmdet>=3.3,<4'],
        'mmseg': ['mmsegmentation>=1.2.2,<2', 'ftfy', 'regex'],
        'dev': (ROOT / 'requirements' / 'dev.txt').read_text().split(),
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
