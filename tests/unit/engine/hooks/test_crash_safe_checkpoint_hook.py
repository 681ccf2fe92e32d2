# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""What is saved stays, whatever happens to the newest file, the pointer or the disk."""
import builtins
import errno
import io
import os
import random
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from partialnet_mm.checkpoint.atomic import write_atomically
from partialnet_mm.checkpoint.files import choose_checkpoint, list_checkpoints, verify_checkpoint
from partialnet_mm.checkpoint.reader import read_checkpoint
from partialnet_mm.engine import CrashSafeCheckpointHook
from tests.helpers.toy_training import build_runner, fingerprint, hash_of
from tests.unit.engine.hooks.test_training_state import types_in


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A work directory after 3 epochs of 4, and the hash of the weights after all 4."""
    folder = tmp_path_factory.mktemp('trained')
    runner = build_runner(folder / 'whole', checkpoint=dict(max_keep_ckpts=-1))
    runner.train()
    shutil.copytree(folder / 'whole', folder / 'three')
    (folder / 'three' / 'epoch_4.pth').unlink()
    (folder / 'three' / 'last_checkpoint').write_text(str(folder / 'three' / 'epoch_3.pth'))
    return folder / 'three', fingerprint(runner.model)


@pytest.fixture
def work_dir(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / 'work')


def names(folder, pattern='*.pth'):
    return sorted(path.name for path in folder.glob(pattern))


def truncate(path, size):
    with open(path, 'r+b') as file:
        file.truncate(size)


def flip_bit(path, offset, bit=0):
    with open(path, 'r+b') as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def offset_of_weights(path):
    """Somewhere in the numbers of the largest tensor."""
    numbers = max(read_checkpoint(str(path))['state_dict'].values(), key=torch.Tensor.numel).numpy().tobytes()
    return path.read_bytes().index(numbers) + len(numbers) // 2


def save_without(path, key):
    checkpoint = torch.load(path, weights_only=False)
    del checkpoint[key]
    torch.save(checkpoint, path)


def save_with(path, key=None, **changes):
    checkpoint = torch.load(path, weights_only=False)
    (checkpoint if key is None else checkpoint[key]).update(changes)
    torch.save(checkpoint, path)


def of_other_shape(path):
    other = build_runner(path.parent / 'other', epochs=1, model=dict(width=16))
    other.train()
    shutil.copy(path.parent / 'other' / 'epoch_1.pth', path)


DAMAGE = dict(
    empty=(lambda path: truncate(path, 0), 'it (0 bytes) cannot be read: it is neither a'),
    first_bytes_only=(lambda path: truncate(path, 100), 'it (100 bytes) cannot be read: it is truncated or damaged'),
    half=(lambda path: truncate(path, path.stat().st_size // 2), 'truncated or damaged'),
    last_byte_missing=(lambda path: truncate(path, path.stat().st_size - 1), 'truncated or damaged'),
    bit_of_a_weight=(lambda path: flip_bit(path, offset_of_weights(path)), 'Bad CRC-32'),
    first_byte=(lambda path: flip_bit(path, 0), 'it is neither a'),
    text=(lambda path: path.write_text('<html>404</html>'), 'truncated or damaged'),
    weights_only=(lambda path: save_without(path, 'optimizer'), 'it has no optimizer'),
    no_position=(lambda path: save_without(path, 'meta'), 'it has no meta'),
    folder=(lambda path: (path.unlink(), path.mkdir()), 'it is a folder'),
    fifo=(lambda path: (path.unlink(), os.mkfifo(path)), 'it is a pipe, a device or a socket'),
    meta_is_a_list=(lambda path: save_with(path, meta=[1]), 'its meta has the wrong type'),
    position_is_text=(lambda path: save_with(path, 'meta', iter='9'), 'its meta.iter has the wrong type'),
    weights_are_numbers=(lambda path: save_with(path, 'state_dict', **{'head.bias': 3}), 'it has no head.bias'),
    no_buffers=(lambda path: save_with(path, 'message_hub', log_scalars=dict(a=1)), 'its message_hub is damaged'),
    other_schedulers=(lambda path: save_with(path, param_schedulers=[{}]), 'its param_schedulers belong to another'),
    random_numbers=(lambda path: save_with(path, 'meta', random_states=[{}]), 'its random state is damaged'),
    seed_is_text=(lambda path: save_with(path, 'meta', seed='0'), 'a position or a seed is no number'),
    data_is_cut=(lambda path: save_with(path, 'meta', data=dict(images=3)), "it is damaged (KeyError: 'step')"),
    optimizer=(lambda path: save_with(path, 'optimizer', param_groups=[]), 'its optimizer belongs to another config'),
    gradients=(lambda path: save_with(path, gradients=[dict(a=torch.ones(1))]), 'its gradients are damaged'),
    other_shape=(of_other_shape, 'another network: backbone.downsample_layers.0.conv.weight is (16, 3, 4, 4)'))


@pytest.mark.parametrize('damage', list(DAMAGE))
def test_resume_skips_a_damaged_checkpoint_and_says_why(trained, work_dir, damage, capfd):
    harm, reason = DAMAGE[damage]
    harm(work_dir / 'epoch_3.pth')
    capfd.readouterr()
    runner = build_runner(work_dir, resume=True)
    runner.train()
    said = capfd.readouterr()
    assert f"resume skips '{work_dir / 'epoch_3.pth'}'" in said.out + said.err
    assert reason in said.out + said.err
    assert fingerprint(runner.model) == trained[1], 'epoch 3 was trained again, and it is the same'


@pytest.mark.parametrize('options', [{}, dict(load_from='epoch_3.pth')])
def test_a_resumed_file_is_opened_once(trained, work_dir, options, monkeypatch):
    """What was checked is what is loaded, even if the file changes in between."""
    path = str(work_dir / 'epoch_3.pth')
    opened = []
    for owner, name in ((os, 'open'), (builtins, 'open'), (io, 'open')):
        def spy(file, *args, original=getattr(owner, name), **kwargs):
            opened.append(file)
            return original(file, *args, **kwargs)
        monkeypatch.setattr(owner, name, spy)
    build_runner(work_dir, resume=True, **{key: str(work_dir / name) for key, name in options.items()}).train()
    assert opened.count(path) == 1


def test_trust(work_dir, capfd):
    """A file with code is skipped, and loaded with the one way round."""
    path = work_dir / 'epoch_3.pth'
    content = torch.load(path, weights_only=False)
    torch.save(dict(content, extra=Path(path)), path)
    for trust, iterations in ((True, 12), (False, 12)):
        runner = build_runner(work_dir, resume=True)
        next(hook for hook in runner.hooks if isinstance(hook, CrashSafeCheckpointHook)).trust_checkpoint = trust
        runner.train()
        assert runner.iter == iterations
        assert (f"resume skips '{path}': it (" in ''.join(capfd.readouterr())) is not trust
        (work_dir / 'epoch_4.pth').unlink()


def test_checkpoints_hold_plain_data_only(work_dir):
    """torch's strictest reader takes them without any further class."""
    checkpoint = torch.load(work_dir / 'epoch_3.pth', weights_only=True)
    assert types_in(checkpoint) == {dict, OrderedDict, list, tuple, str, int, float, bool, type(None), torch.Tensor}
    assert len(checkpoint['message_hub']['log_scalars']['train/loss']['history']) == 9


@pytest.mark.parametrize('config', [False, True])
def test_a_checkpoint_of_mmengines_own_hook_is_resumed(trained, tmp_path, config):
    """It has log buffers and methods in it. A config in ``meta``, which mmengine would run, is left out."""
    runner = build_runner(tmp_path / 'theirs', epochs=3, checkpoint=dict(type='CheckpointHook'))
    del runner._hooks[-1:]
    runner._hooks = [hook for hook in runner.hooks if type(hook).__name__ != 'PreemptionHook']
    runner.train()
    path = tmp_path / 'theirs' / 'epoch_3.pth'
    ran = tmp_path / 'ran'
    if config:
        save_with(path, 'meta', config=f"open({str(ran)!r}, 'w')")
    resumed = build_runner(tmp_path / 'theirs', resume=True)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (4, 12)
    scalars, _ = resumed.message_hub.get_scalar('train/loss').data
    assert len(scalars) == 12
    assert not ran.exists()


def test_any_flipped_bit_is_found_or_harmless(work_dir):
    model = build_runner(work_dir / 'new').model
    path = work_dir / 'epoch_3.pth'
    whole = path.read_bytes()
    expected = hash_of(read_checkpoint(str(path))['state_dict'])
    draw = random.Random(0)
    found = 0
    for _ in range(60):
        flip_bit(path, draw.randrange(len(whole)), draw.randrange(8))
        try:
            verify_checkpoint(str(path), model)
        except ValueError:
            found += 1
        else:
            assert hash_of(read_checkpoint(str(path))['state_dict']) == expected
        path.write_bytes(whole)
    assert found > 45


@pytest.mark.parametrize('pointer', [None, '', 'epoch_2.pth', '/nowhere/epoch_99.pth', '\0garbage'])
def test_the_pointer_is_repaired(trained, work_dir, pointer):
    path = work_dir / 'last_checkpoint'
    path.unlink()
    if pointer is not None:
        path.write_text(pointer)
    runner = build_runner(work_dir, resume=True)
    runner.train()
    assert fingerprint(runner.model) == trained[1]
    assert path.read_text() == str(work_dir / 'epoch_4.pth')


def test_a_work_directory_may_move(trained, work_dir, tmp_path):
    shutil.move(str(work_dir), str(tmp_path / 'elsewhere'))
    for path in (tmp_path / 'elsewhere').glob('*.pth'):
        os.utime(path, (0, 0) if path.name == 'epoch_3.pth' else None)  # copying may lose the order of the dates
    runner = build_runner(tmp_path / 'elsewhere', resume=True)
    runner.train()
    assert fingerprint(runner.model) == trained[1]
    assert not work_dir.exists()


def test_nothing_usable_stops_instead_of_starting_anew(work_dir):
    for name in names(work_dir):
        truncate(work_dir / name, 1000)
    with pytest.raises(RuntimeError, match='none of the checkpoints in') as stopped:
        build_runner(work_dir, resume=True).train()
    assert all(f'epoch_{i}.pth: it (1000 bytes) cannot be read: it is truncated' in str(stopped.value)
               for i in (1, 2, 3))


@pytest.mark.parametrize('resume', [False, True])
def test_a_validation_locks_nothing(work_dir, resume):
    """The config that a resumed training leaves in its work folder says that it resumes."""
    metrics = build_runner(work_dir, resume=resume, load_from=str(work_dir / 'epoch_3.pth')).val()
    assert metrics['accuracy'] >= 1 and not (work_dir / 'training.lock').exists()


def test_nothing_to_resume_starts(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_3.pth')
    runner = build_runner(tmp_path, resume=True, epochs=1)
    runner.train()
    assert names(tmp_path) == ['epoch_1.pth']


def test_a_checkpoint_named_for_resuming_is_verified(work_dir):
    flip_bit(work_dir / 'epoch_2.pth', offset_of_weights(work_dir / 'epoch_2.pth'))
    with pytest.raises(ValueError, match=r'cannot resume from .*epoch_2\.pth.*CRC'):
        build_runner(work_dir / 'new', resume=True, load_from=str(work_dir / 'epoch_2.pth')).train()


def test_keeps_the_newest_and_leaves_nothing_else(tmp_path):
    build_runner(tmp_path, checkpoint=dict(max_keep_ckpts=2)).train()
    assert names(tmp_path) == ['epoch_3.pth', 'epoch_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_4.pth')
    assert names(tmp_path, '*.saving') == []


@pytest.mark.parametrize('keep', [0, 1])
def test_one_checkpoint_is_not_enough(keep):
    with pytest.raises(ValueError, match=f'max_keep_ckpts must be at least 2, or -1 for all.*got {keep}'):
        CrashSafeCheckpointHook(max_keep_ckpts=keep)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match='max_keep_ckpt'):
        CrashSafeCheckpointHook(max_keep_ckpt=3)


class FullDisk(Hook):
    """Lets a call of the system fail from the moment at which a checkpoint is about to be written."""

    def __init__(self, patch, call):
        self.patch = patch
        self.call = call

    def before_save_checkpoint(self, runner, checkpoint):
        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, 'No space left on device')

        module = 'partialnet_mm.checkpoint.atomic.'
        self.patch.setattr(module + self.call, full, raising=False)


@pytest.mark.parametrize('call', ['open', 'os.fsync', 'os.replace'])
def test_a_full_disk_costs_nothing_that_was_saved(work_dir, monkeypatch, call):
    before = {path.name: path.read_bytes() for path in work_dir.glob('epoch_*.pth')}
    with pytest.raises(OSError, match=r"epoch_4\.pth' \(\d+ bytes\) could not be written: No space left") as stopped:
        build_runner(work_dir, resume=True, val=False, checkpoint=dict(max_keep_ckpts=2),
                     hooks=[FullDisk(monkeypatch, call)]).train()
    assert stopped.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in work_dir.glob('epoch_*')} == before
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_3.pth')


def test_stopped_before_the_pointer_moves_the_oldest_is_still_there(tmp_path, monkeypatch):
    def stop_at_pointer(content, path):
        if str(path).endswith('last_checkpoint') and content.endswith(b'epoch_4.pth'):
            raise KeyboardInterrupt
        write_atomically(content, path)

    monkeypatch.setattr('partialnet_mm.engine.hooks.crash_safe_checkpoint_hook.write_atomically', stop_at_pointer)
    with pytest.raises(KeyboardInterrupt):
        build_runner(tmp_path, val=False, checkpoint=dict(max_keep_ckpts=2)).train()
    assert names(tmp_path) == ['epoch_2.pth', 'epoch_3.pth', 'epoch_4.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_3.pth')
    monkeypatch.undo()
    runner = build_runner(tmp_path, val=False, resume=True, epochs=5, checkpoint=dict(max_keep_ckpts=2))
    runner.train()
    assert names(tmp_path) == ['epoch_4.pth', 'epoch_5.pth'], 'what the crash has left over is gone'


def test_the_former_best_goes_after_the_new_one_is_there(tmp_path, monkeypatch):
    seen = []
    remove = CrashSafeCheckpointHook._remove

    def watch(hook, path):
        seen.append((os.path.basename(path), names(tmp_path, 'best*')))
        remove(hook, path)

    monkeypatch.setattr(CrashSafeCheckpointHook, '_remove', watch)
    build_runner(tmp_path, epochs=2, checkpoint=dict(save_best='accuracy')).train()
    best = [f'best_accuracy_epoch_{i}.pth' for i in (1, 2)]
    assert seen == [(best[0], best)]
    assert names(tmp_path, 'best*') == best[1:]


def test_the_best_is_found_after_a_move(tmp_path):
    options = dict(checkpoint=dict(save_best='accuracy'))
    build_runner(tmp_path / 'old', epochs=2, **options).train()
    shutil.move(str(tmp_path / 'old'), str(tmp_path / 'new'))
    runner = build_runner(tmp_path / 'new', epochs=4, resume=True, **options)
    runner.train()
    assert len(names(tmp_path / 'new', 'best*')) == 1


def test_unfinished_files_are_no_checkpoints_and_go(trained, work_dir):
    (work_dir / 'epoch_4.pth.saving').write_bytes(b'half of it')
    runner = build_runner(work_dir, resume=True)
    runner.train()
    assert fingerprint(runner.model) == trained[1]
    assert names(work_dir, '*.saving') == []


@pytest.mark.parametrize('pointer, expected, left', [
    ('epoch_1.pth', 'epoch_2.pth', ['epoch_4.pth', 'epoch_3.pth']),
    ('/elsewhere/epoch_2.pth', 'epoch_2.pth', ['epoch_4.pth', 'epoch_3.pth']),
    ('epoch_0.pth', None, ['epoch_4.pth', 'epoch_3.pth', 'epoch_2.pth', 'epoch_1.pth']),  # there, and damaged
    ('epoch_3.pth', 'epoch_4.pth', []),
    ('epoch_99.pth', 'epoch_4.pth', []),
    ('', 'epoch_4.pth', []),
    (None, 'epoch_4.pth', []),
])
def test_the_pointer_names_the_training(tmp_path, pointer, expected, left):
    runs = {0: None, 1: 'new', 2: 'new', 3: 'old', 4: 'old'}
    for epoch in runs:
        (tmp_path / f'epoch_{epoch}.pth').touch()

    def verify(path):
        epoch = int(os.path.basename(path)[len('epoch_'):-len('.pth')])
        if runs[epoch] is None:
            raise ValueError('damaged')
        return dict(meta=dict(run=runs[epoch], iter=epoch))

    choice = choose_checkpoint(str(tmp_path), 'epoch_{}.pth', verify, pointer)
    assert choice.path == (expected and str(tmp_path / expected))
    assert (choice.content and f"epoch_{choice.content['meta']['iter']}.pth") == expected
    assert choice.left == [str(tmp_path / name) for name in left]


def test_a_training_that_goes_on_from_a_named_file_is_a_run_of_its_own(work_dir, capfd):
    """It leaves the former epoch 3 alone, and epoch 1, which it started from, still belongs to it."""
    build_runner(work_dir, epochs=2, resume=True, load_from=str(work_dir / 'epoch_1.pth'), val=False).train()
    capfd.readouterr()
    runner = build_runner(work_dir, epochs=2, resume=True, val=False)
    runner.train()
    output = ''.join(capfd.readouterr())
    assert f"resume leaves '{work_dir / 'epoch_3.pth'}': it is of another training" in output
    assert runner.iter == 6
    metas = [read_checkpoint(str(work_dir / f'epoch_{epoch}.pth'))['meta'] for epoch in (1, 2)]
    assert metas[1]['forked_from'] == [[metas[0]['run'], 3]] and metas[1]['run'] != metas[0]['run']
    truncate(work_dir / 'epoch_2.pth', 100)
    for _ in range(2):
        runner = build_runner(work_dir, epochs=2, resume=True, val=False)
        runner.train()
        assert runner.iter == 6, 'the former epoch 3 is still left'


def test_order_of_names(tmp_path):
    for name in ('epoch_2.pth', 'epoch_10.pth', 'epoch_9.pth', 'epoch_9_iter_33.pth', 'epoch_9_iter_8.pth',
                 'epoch_11.pth.saving', 'best_epoch_12.pth', 'iter_99.pth', 'epoch_.pth'):
        (tmp_path / name).touch()
    assert list_checkpoints(str(tmp_path), 'epoch_{}.pth') == [
        'epoch_10.pth', 'epoch_9_iter_33.pth', 'epoch_9_iter_8.pth', 'epoch_9.pth', 'epoch_2.pth']
    assert list_checkpoints(str(tmp_path / 'nowhere'), 'epoch_{}.pth') == []
    assert choose_checkpoint(str(tmp_path / 'nowhere'), 'epoch_{}.pth', print) == (None, None, [], [])


def test_checkpoints_elsewhere_are_found(tmp_path):
    options = dict(checkpoint=dict(out_dir=str(tmp_path / 'disk')))
    build_runner(tmp_path / 'work', epochs=2, **options).train()
    assert names(tmp_path / 'disk' / 'work') == ['epoch_1.pth', 'epoch_2.pth']
    truncate(tmp_path / 'disk' / 'work' / 'epoch_2.pth', 0)
    runner = build_runner(tmp_path / 'work', epochs=3, resume=True, **options)
    runner.train()
    assert runner.iter == 9
    assert names(tmp_path / 'disk' / 'work') == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']
