# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Files are written whole or not at all, and none of the user's is written over."""
import os

import pytest

from partialnet_mm.checkpoint.atomic import refuse_overwrite


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'inputs').mkdir()
    (tmp_path / 'inputs' / 'source.pth').write_text('source')
    (tmp_path / 'there.pth').write_text('there')
    (tmp_path / 'link.pth').symlink_to('there.pth')
    (tmp_path / 'dangling.pth').symlink_to('nothing')
    (tmp_path / 'to_source.pth').symlink_to('inputs/source.pth')
    os.link(tmp_path / 'inputs' / 'source.pth', tmp_path / 'hard.pth')
    return tmp_path


@pytest.mark.parametrize('name', ['there.pth', 'link.pth', 'dangling.pth'])
def test_an_existing_file_needs_force(folder, name):
    source = folder / 'inputs' / 'source.pth'
    with pytest.raises(ValueError, match=rf"{name}' is not written: it exists. --force overwrites it"):
        refuse_overwrite(folder / name, [source])
    refuse_overwrite(folder / name, [source], force=True)


@pytest.mark.parametrize('name', ['inputs/source.pth', 'inputs/../inputs/source.pth', 'to_source.pth', 'hard.pth'])
@pytest.mark.parametrize('force', [False, True])
def test_an_input_is_never_overwritten(folder, name, force):
    with pytest.raises(ValueError, match='would overwrite the input .*source.pth'):
        refuse_overwrite(folder / name, [str(folder / 'inputs' / 'source.pth')], force)


def test_a_folder_of_inputs_is_protected(folder):
    with pytest.raises(ValueError, match=r"new.pth' is not written: it would overwrite the input"):
        refuse_overwrite(folder / 'inputs' / 'new.pth', [folder / 'inputs'], force=True)
    refuse_overwrite(folder / 'inputs2.pth', [folder / 'inputs'])


def test_a_new_file_may_be_written(folder):
    refuse_overwrite(folder / 'new.pth', [folder / 'inputs' / 'source.pth', folder / 'missing.pth'])
    with pytest.raises(ValueError, match='it is a folder'):
        refuse_overwrite(folder / 'inputs', force=True)
