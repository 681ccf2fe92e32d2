# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Reading a config: every mistake in its files, in its values and in the options is one sentence."""
import ast
import difflib
import inspect
import json
import logging
import math
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mmengine.registry
import yaml
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import Registry
from mmengine.runner import Runner

from ...checkpoint import CheckpointError
from ...config_types import complete_types, type_name
from .user_errors import is_ours

ENDINGS = ('.py', '.json', '.yaml', '.yml')
#: Top-level keys that a runner or a tool reads, beside the arguments of the runner.
OTHER_KEYS = ('auto_scale_lr', 'custom_imports', 'find_unused_parameters', 'model_wrapper_cfg', 'runner_type',
              'sync_bn', 'tta_model', 'tta_pipeline')
#: Longest message of another library that an error quotes, in letters.
QUOTED = 400


class ConfigError(ValueError):
    """A config or an option is wrong. Tools print it without a traceback."""


def read_config(path: str, options: Mapping[str, Any] | None = None,
                warn: Callable[[str], object] = lambda sentence: None) -> Config:
    """Reads a config file and changes it by the options of a command line.

    Args:
        path: A file that mmengine reads.
        options: Values by dotted keys. Defaults to None.
        warn: Gets a sentence for each option that the config does not have. Defaults to nothing.

    Raises:
        ConfigError: If a file of the config, a value in it or an option is wrong.
    """
    files = _check_files(path)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code, and may raise anything
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
                 if frame.filename in files]
        where = f'config {lines[-1][0]!r}, line {lines[-1][1]}' if lines else f'config {path!r}'
        raise ConfigError(f'{where}: {describe(error)}') from error
    sentences = list(unknown_keys(cfg, options or {}))
    _merge(cfg, options or {})
    _check_values(cfg, path)
    complete_types(cfg)
    for sentence in sentences:
        warn(sentence)
    return cfg


def _check_files(path: str, above: tuple[str, ...] = ()) -> set[str]:
    """The absolute paths of a config and its bases; raises a ConfigError for one that cannot be read."""
    name = f'config {path!r}' + (f', a base of {above[-1]!r},' if above else '')
    if os.path.abspath(path) in map(os.path.abspath, above):
        raise ConfigError(f'config {path!r} has itself as a base: {" -> ".join([*above, path])}')
    if os.path.splitext(path)[1] not in ENDINGS:
        raise ConfigError(f'{name} must end in one of {", ".join(ENDINGS)}')
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read()
    except FileNotFoundError as error:
        raise ConfigError(f'{name} does not exist') from error
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise ConfigError(f'{name} is not UTF-8 text: byte {error.start} is {wrong:#04x}') from error
    except OSError as error:
        raise ConfigError(f'{name} cannot be read: {error.strerror}') from error
    files = {os.path.abspath(path)}
    for base, line in _bases(path, name, text):
        base = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if not os.path.isfile(base):
            raise ConfigError(f'{name}{line}: its base {base!r} does not exist')
        files |= _check_files(base, (*above, path))
    return files


def _bases(path: str, name: str, text: str) -> Iterator[tuple[str, str]]:
    """Bases that a config names as files, each with where it does; those that are computed are mmengine's matter."""
    if not path.endswith('.py'):
        try:
            content = json.loads(text) if path.endswith('.json') else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError):
            return  # templates, which mmengine replaces
        bases = content.get('_base_', ()) if isinstance(content, dict) else ()
        yield from ((base, '') for base in ([bases] if isinstance(bases, str) else bases) if '::' not in base)
        return
    try:
        tree = ast.parse(text, path)
    except SyntaxError as error:
        raise ConfigError(f'{name} line {error.lineno}: {error.msg}: {(error.text or "").strip()!r}') from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{name} is no Python: {error}') from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == '_base_':
            try:
                bases = ast.literal_eval(node.value)
            except ValueError:
                continue
            for base in [bases] if isinstance(bases, str) else bases:
                if '::' not in base:
                    yield base, f' line {node.lineno}'
        elif isinstance(node, ast.With):  # with read_base(): from .module import ...
            for statement in node.body:
                if isinstance(statement, ast.ImportFrom) and statement.level and statement.module:
                    folders = [os.pardir] * (statement.level - 1)
                    yield (os.path.join(*folders, *statement.module.split('.')) + '.py', f' line {statement.lineno}')


def _merge(cfg: Config, options: Mapping[str, Any]) -> None:
    try:
        cfg.merge_from_dict(dict(options))
    except Exception as error:
        for key, value in options.items():
            try:
                Config(cfg.to_dict()).merge_from_dict({key: value})
            except Exception as single:
                raise ConfigError(f'--cfg-options {key}={value}: {describe(single)}') from single
        raise ConfigError(f'--cfg-options: {describe(error)}') from error


def unknown_keys(cfg: Config, options: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each key of a command line that the config does not have, with the nearest one.

    Not for arguments of the runner, or of a registered class of this package, that the config leaves at their default.
    """
    for key in options:
        node: Any = cfg
        parts, above = key.split('.'), []
        for part in parts:
            if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, Mapping | Config) and part in node:
                node = node[part]
            else:
                break
            above.append(part)
        else:
            continue
        known = list(node) if isinstance(node, Mapping | Config) else []
        arguments = _arguments(node) if above else [*inspect.signature(Runner).parameters, *OTHER_KEYS]
        if part in arguments or part == '_delete_':
            continue
        near = difflib.get_close_matches(part, [*known, *arguments], n=1, cutoff=0.5)
        hint = f'the nearest one is {".".join([*above, near[0]])}' if near else (
            f'{".".join(above) or "the config"} has {", ".join(map(str, known[:8])) or "no keys"}')
        yield f'--cfg-options adds {key}, which the config does not have; {hint}'


def _arguments(node: Any) -> list[str]:
    """Names of the arguments of the class that a dict of a config describes, as far as it is known without imports."""
    kind = node.get('type') if isinstance(node, Mapping) else None
    if isinstance(kind, str):
        name = type_name(kind)
        kind = next((registry.module_dict[name] for registry in _registries() if name in registry.module_dict), None)
    return list(inspect.signature(kind).parameters) if inspect.isclass(kind) else []


def _registries() -> list[Registry]:
    return [registry for registry in vars(mmengine.registry).values() if isinstance(registry, Registry)]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _is_level(value: Any) -> bool:
    return isinstance(value, int) or isinstance(value, str) and isinstance(logging.getLevelName(value), int)


#: Values by dotted keys that end a training late or with a message that does not name them: what is right, in words.
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    'model': (lambda value: isinstance(value, Mapping) and 'type' in value, 'a dict with a type'),
    'resume': (lambda value: isinstance(value, bool), 'True or False'),
    'load_from': (lambda value: isinstance(value, str), 'a file or None'),
    'work_dir': (lambda value: isinstance(value, str), 'a folder'),
    'log_level': (_is_level, 'DEBUG, INFO, WARNING, ERROR or CRITICAL'),
    'randomness.seed': (lambda value: isinstance(value, int) and value >= 0, 'a whole number from 0 up or None'),
    'optim_wrapper.optimizer.lr': (_is_number, 'a number from 0 up'),
    'optim_wrapper.optimizer.weight_decay': (_is_number, 'a number from 0 up'),
    'default_hooks.checkpoint.interval': (lambda value: value == -1 or _is_count(value),
                                          'a whole number from 1 up, or -1 for no checkpoints'),
    **dict.fromkeys([f'{split}_dataloader.num_workers' for split in ('train', 'val', 'test')],
                    (lambda value: isinstance(value, int) and value >= 0, 'a whole number from 0 up')),
    **dict.fromkeys([*(f'{split}_dataloader.batch_size' for split in ('train', 'val', 'test')),
                     'optim_wrapper.accumulative_counts', 'train_cfg.max_epochs', 'train_cfg.max_iters',
                     'train_cfg.val_interval', 'default_hooks.logger.interval'],
                    (_is_count, 'a whole number from 1 up')),
}


def _check_values(cfg: Config, path: str) -> None:
    """Raises a ConfigError for a value of :data:`VALUES`; 'auto' in an own-data config gets its value later."""
    for key, (is_right, allowed) in VALUES.items():
        node: Any = cfg
        for part in key.split('.'):
            node = node.get(part) if isinstance(node, Mapping | Config) else None
        if node is not None and not is_right(node) and not (node == 'auto' and cfg.get('own_data')):
            raise ConfigError(f'config {path!r}: {key} must be {allowed}, got {node!r}')


class StartHook(Hook):
    """Knows whether a training or a test has begun."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.started = False

    def before_train(self, runner: Runner) -> None:
        self.started = True

    def before_test(self, runner: Runner) -> None:
        self.started = True


@contextmanager
def config_errors(path: str, start: StartHook | None = None) -> Iterator[None]:
    """Raises as a ConfigError what a library raises while it builds what a config describes.

    Args:
        path: The config.
        start: Ends this: what is raised after the start is no mistake of the config. Defaults to None.
    """
    try:
        yield
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:
        if start is not None and start.started:
            raise
        raise ConfigError(f'config {path!r}: {describe(error)}') from error


def describe(error: BaseException) -> str:
    """An error of any library in one line, with its cause where the message is of no use without it."""
    if isinstance(error, ImportError) and isinstance(error.__context__, ImportError):
        return describe(error.__context__)  # mmengine's own message is a list of folders
    if isinstance(error, ValueError) and is_ours(error):
        return str(error)
    words = ' '.join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    found = re.match(r'(\S+) is not in the (\S+)::(.+?) registry', words)
    if found:
        kind, scope, registry = found.groups()
        near = difflib.get_close_matches(kind.split('.')[-1], _registered(registry), n=1)
        return f'type {kind!r} is not known to the registry {registry!r} of {scope}' + (
            f'; the nearest one is {near[0]!r}' if near else '')
    if isinstance(error, KeyError) and words.isidentifier():
        return f'the key {words!r} is missing'
    if len(words) > QUOTED:
        words = f'{words[:QUOTED]} ...'
    return words if type(error) is ValueError else f'{type(error).__name__}: {words}'


def _registered(name: str) -> Sequence[str]:
    """All names of the registries of a name, those of the libraries included."""
    names: list[str] = []
    waiting = [registry for registry in _registries() if registry.name == name]
    while waiting:
        registry = waiting.pop()
        names += registry.module_dict
        waiting += registry.children.values()
    return names
