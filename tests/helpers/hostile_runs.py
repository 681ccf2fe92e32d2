# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Runs every tool that opens a checkpoint on hostile files, each in a process of its own with limits.

Processes are forked after all imports, which saves seconds each. Prints one line of JSON per run. Arguments: a folder,
and 'quick' or 'all'.
"""
import gc
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mmengine
import torch
from mmengine.config import Config
from mmpretrain.utils import register_all_modules
from PIL import Image

from partialnet_mm.checkpoint import read_checkpoint, write_checkpoint
from partialnet_mm.converters.official_layout import to_official
from partialnet_mm.models import PartialNet
from tests.helpers.hostile_checkpoints import KINDS
from tests.helpers.libraries import ROOT
from tests.helpers.tiny_models import CONFIGS
from tests.helpers.tool_scripts import load_tool

ARCH = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=2, act_cfg=dict(type='ReLU'))
DATA = """
data_preprocessor = dict(num_classes=2)
model = dict(
    head=dict(
        _delete_=True, type='StackedLinearClsHead', num_classes=2, in_channels=128, mid_channels=[24],
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))
train_cfg = dict(max_epochs=1)
val_evaluator = dict(topk=1)
test_evaluator = dict(topk=1)
custom_hooks = []
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root={data!r}, split='', data_prefix='train', metainfo=dict(classes=['blue', 'red'])))
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root={data!r}, split='', data_prefix='train', metainfo=dict(classes=['blue', 'red'])))
test_dataloader = val_dataloader
"""
PLAIN_HOOKS = """
default_hooks = dict(_delete_=True, checkpoint=dict(type='CheckpointHook', interval=1))
"""
#: What a process may do beyond reading and writing files, by Python's audit events.
DEEDS = ('os.exec', 'os.fork', 'os.posix_spawn', 'os.putenv', 'os.system', 'pickle.find_class', 'socket.connect',
         'socket.getaddrinfo', 'subprocess.Popen', 'webbrowser.open')
#: Limits of a run: seconds, and memory beyond what the imports take, in bytes.
SECONDS, MEMORY = 120, 2 << 30


class Entry(NamedTuple):
    """A way for a file into this project's tools."""

    script: str
    #: From the file, the config and a folder of the run to the arguments.
    arguments: Callable[[Path, Path, Path], list]
    #: Name of the file in the folder of the run.
    name: str = 'c.pth'
    #: Which healthy file it takes.
    healthy: str = 'trained'


def train(*options: str, resume: bool = False) -> Callable[[Path, Path, Path], list]:
    return lambda file, config, run: [config, '--work-dir', run / 'work', '--skip-preflight', *(
        ['--resume', *([file] if file.parent == run else [])] if resume else []), *(
        ['--cfg-options', *(option.format(file=file) for option in options)] if options else [])]


CONVERTERS = 'tools/model_converters'
ENTRIES = {
    'infer': Entry('tools/infer.py', lambda file, config, run: [
        config, file, config.parent / 'data/train/red/0.png', '--out-dir', run / 'out', '--device', 'cpu']),
    'publish': Entry(f'{CONVERTERS}/publish_model.py', lambda file, config, run: [file, run / 'out.safetensors']),
    'official_to_mm': Entry(f'{CONVERTERS}/official_to_mm.py', lambda file, config, run: [file, run / 'out.pth'],
                            healthy='official'),
    'official_to_mm --reverse': Entry(f'{CONVERTERS}/official_to_mm.py', lambda file, config, run: [
        file, run / 'out.pth', '--reverse', '--head-bias']),
    'reparameterize': Entry(f'{CONVERTERS}/reparameterize_model.py', lambda file, config, run: [
        config, file, run / 'out.safetensors']),
    'dpconv_to_fixed': Entry(f'{CONVERTERS}/dpconv_to_fixed.py', lambda file, config, run: [file, run / 'out.pth'],
                             healthy='search'),
    'analyze_logs ratios': Entry('tools/analysis_tools/analyze_logs.py', lambda file, config, run: ['ratios', file],
                                 healthy='search'),
    'export_onnx': Entry('tools/deployment/export_onnx.py', lambda file, config, run: [
        config, file, '--output', run / 'out.onnx', '--no-check']),
    'train load_from': Entry('tools/train.py', train('load_from={file}')),
    'train init_cfg': Entry('tools/train.py', train(
        'model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint={file}',
        'model.backbone.init_cfg.prefix=backbone.')),
    'train init_cfg of the head': Entry('tools/train.py', train(
        'model.head.init_cfg.type=Pretrained', 'model.head.init_cfg.checkpoint={file}',
        'model.head.init_cfg.prefix=head.')),
    'train pretrained': Entry('tools/train.py', train('model.pretrained={file}')),
    'resume FILE': Entry('tools/train.py', train(resume=True)),
    'resume': Entry('tools/train.py', train(resume=True), 'work/epoch_1.pth'),
    "resume, mmengine's hook": Entry('tools/train.py', lambda file, config, run: train(resume=True)(
        file, config.with_name('plain.py'), run), 'work/epoch_1.pth'),
    'test': Entry('tools/test.py', lambda file, config, run: [
        config, file, '--work-dir', run / 'work', '--skip-preflight']),
}
#: Entries that build a data set and a model first, a second each.
RUNNERS = [entry for entry, (script, *_) in ENTRIES.items() if script in ('tools/train.py', 'tools/test.py')]
#: One of each sort, for the quick run.
QUICK = ('os.system', 'legacy with a module', 'TorchScript', 'deflated members', 'expanded tensor',
         'lists in lists, twice each', 'meta in lists, twice each', 'keys of one hash', 'pipe',
         'tensor over a short record', 'ndarray over a buffer', 'half', 'bit flipped in a tensor', 'list',
         'tensor names to control a terminal', 'safetensors, truncated')
QUICK_RUNNERS = ('os.system', 'half')


def quick_kinds(entry: str) -> tuple[str, ...]:
    """The kinds of an entry in the quick run: one reader opens all files, so each kind meets some of the entries."""
    return QUICK_RUNNERS if entry in RUNNERS else (QUICK[0], *QUICK[1 + list(ENTRIES).index(entry) % 3::3])


def prepare(folder: Path) -> tuple[Path, dict[str, Path]]:
    """Writes data, config and healthy files."""
    for name in ('blue', 'red'):
        (folder / 'data/train' / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (48, 48), name).save(folder / 'data/train' / name / f'{i}.png')
    config = folder / 'config.py'
    base = folder / 'base.py'
    base.write_text(CONFIGS['classifier'].format(arch=repr(ARCH)))
    config.write_text(f"_base_ = '{base}'\n" + DATA.format(data=str(folder / 'data')))
    (folder / 'plain.py').write_text(f"_base_ = '{config}'\n" + PLAIN_HOOKS)
    (folder / 'training').mkdir()
    done = forked(Entry('tools/train.py', train()), folder / 'training', config, folder / 'none')
    healthy = dict(trained=folder / 'training' / 'work' / 'epoch_1.pth', official=folder / 'official.pth',
                   search=folder / 'search.pth')
    if not healthy['trained'].exists():
        raise RuntimeError(f'the training that makes a healthy checkpoint failed: {done}')
    trained = read_checkpoint(healthy['trained'])
    write_checkpoint(to_official(trained, head_bias=True), healthy['official'])
    searched = PartialNet(ARCH, token_mixers='dpconv').state_dict()
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in searched.items()}), healthy['search'])
    return config, healthy


def forked(entry: Entry, run: Path, config: Path, file: Path) -> dict:
    """Runs a tool in a process of its own; what it prints goes to files in the folder of the run."""
    before = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status, deeds = 1, set()
        sys.addaudithook(lambda event, args: deeds.add(f'{event} {str(args[:1])[:80]}') if event in DEEDS else None)
        try:
            for stream, name in ((1, 'stdout'), (2, 'stderr')):
                os.dup2(os.open(run / name, os.O_WRONLY | os.O_CREAT), stream)
            pages = int(Path('/proc/self/statm').read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, ) * 2)
            signal.alarm(SECONDS)
            os.chdir(ROOT)
            sys.argv = [entry.script, *map(str, entry.arguments(file, config, run))]
            load_tool(entry.script).main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            (run / 'deeds').write_text('\n'.join(sorted(deeds)))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    said = (run / 'stderr').read_text(errors='replace')
    deeds = (run / 'deeds').read_text().splitlines() if (run / 'deeds').exists() else ['none recorded: it was killed']
    return dict(status=os.waitstatus_to_exitcode(status), seconds=time.monotonic() - before, said=said[-4000:],
                deeds=deeds)


def attack(name: str, kind: str, folder: Path, config: Path, healthy: dict[str, Path]) -> dict:
    """One file through one entry."""
    entry = ENTRIES[name]
    # Letters that a command line leaves alone.
    run = folder / 'runs' / re.sub(r'[^\w.-]+', '_', f'{name} {kind}')
    file = run / entry.name
    file.parent.mkdir(parents=True)
    if kind == 'healthy':
        file.write_bytes(healthy[entry.healthy].read_bytes())
    else:
        KINDS[kind](file, run / 'canary')
    if file.parent != run:
        (file.parent / 'last_checkpoint').write_text(str(file))
    result = forked(entry, run, config, file)
    weights = [path.name for path in run.rglob('*')
               if path != file and path.suffix in ('.pth', '.safetensors', '.onnx')]
    return dict(result, entry=name, kind=kind, canary=(run / 'canary').exists(), weights=weights,
                written=sorted(path.name for path in run.iterdir() if path.name not in ('stdout', 'stderr', 'deeds')))


def main() -> None:
    folder, extent = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=False)
    # What takes most of a start, and has nothing to do with checkpoints.
    Config.pretty_text = ''
    mmengine.runner.runner.collect_env = dict
    for script in {entry.script for entry in ENTRIES.values()}:
        load_tool(script)
    config, healthy = prepare(folder)
    gc.freeze()
    for name in ENTRIES:
        kinds = KINDS if extent == 'all' else quick_kinds(name)
        for kind in ('healthy', *kinds):
            sys.stdout.write(json.dumps(attack(name, kind, folder, config, healthy)) + '\n')
            sys.stdout.flush()


if __name__ == '__main__':
    main()
