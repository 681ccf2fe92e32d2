# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Packaging. Configs, tools and the model index go to ``partialnet_mm/.mim``, where OpenMMLab's tools look."""
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Adds ``.mim``: copies in a wheel, links in an editable install."""

    def run(self) -> None:
        super().run()
        if getattr(self, 'editable_mode', False):
            target = ROOT / 'partialnet_mm' / '.mim'
            target.mkdir(exist_ok=True)
            for name in MIM:
                link = target / name
                if link.is_symlink():
                    link.unlink()
                link.symlink_to(Path('..', '..', name))
            return
        target = Path(self.build_lib) / 'partialnet_mm' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in MIM:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
            else:
                shutil.copy2(source, target / name)


def read_requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith('#')]


version: dict = {}
exec((ROOT / 'partialnet_mm' / 'version.py').read_text(), version)

setup(
    name='partialnet-mm',
    version=version['__version__'],
    description='PartialNet (Partial Channel Network: Compute Fewer, Perform Better) for the OpenMMLab family',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    keywords='computer vision, backbone, object detection, instance segmentation',
    packages=find_packages(include=['partialnet_mm', 'partialnet_mm.*']),
    python_requires='>=3.10',
    # The predictor ('runtime') needs no torch. Either set ('onedl', 'openmmlab') brings torch, mmengine and mmcv under
    # names of its own; importing the package checks them.
    install_requires=['numpy'],
    extras_require={
        name: read_requirements(name) for name in ('onedl', 'openmmlab', 'runtime', 'test', 'benchmark', 'export')
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
