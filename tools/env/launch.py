# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks a distributed job, then starts its processes: launch.py PROCESSES SCRIPT [arguments], as torchrun.sh calls it.

What can be known early is an error of one sentence before any process is started: the environment variables, the GPUs,
and of tools/train.py and tools/test.py the command line, the config, the checkpoints and the data. The processes do not
check again. torchrun then runs in this process, which has imported torch already.

launch.py --check PROCESSES SCRIPT [arguments], as srun.sh calls it, only checks. The processes start on other machines,
so this one needs no GPU.
"""
import importlib.util
import os
import re
import socket
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent


def number(name: str, default: int, least: int, most: float, allowed: str) -> int:
    """The value of a variable; exits with 2 if it is no number in the range."""
    value = os.environ.get(name) or str(default)
    if not re.fullmatch('[0-9]+', value) or not least <= int(value) <= most:
        fail(f'{name}={value} is wrong: {allowed} is needed')
    return int(value)


def fail(message: str) -> NoReturn:
    print(f'torchrun.sh: {message}', file=sys.stderr)
    sys.exit(2)


def check_variables() -> tuple[int, int, str]:
    """The number of machines, the rank of this one and the first one's address; wrong variables are an error.

    torchrun itself would wait for machines that never come.
    """
    machines = number('NNODES', 1, 1, float('inf'), 'a number of machines, from 1 up')
    rank = number('NODE_RANK', 0, 0, machines - 1, f'a number from 0 to {machines - 1}, below NNODES={machines},')
    number('RESTARTS', 0, 0, float('inf'), 'a number from 0 up')
    if os.environ.get('PORT'):
        number('PORT', 1, 1, 65535, 'a port from 1 to 65535')
    if machines > 1:
        for name, meaning in (('PORT', 'the same on every machine'), ('NODE_RANK', 'another on each machine'),
                              ('MASTER_ADDR', 'the machine of NODE_RANK=0')):
            if not os.environ.get(name):
                fail(f'NNODES={machines} needs {name}, {meaning}')
    address = os.environ.get('MASTER_ADDR') or '127.0.0.1'
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        fail(f'MASTER_ADDR={address} is wrong: no machine of this name is known ({error})')
    return machines, rank, address


def find_port(rank: int) -> int:
    """PORT, or a free one; exits with 2 if it is in use on the first machine."""
    port = int(os.environ.get('PORT') or 0)
    if rank > 0:
        return port
    try:
        with socket.create_server(('', port)) as server:
            return server.getsockname()[1]
    except OSError as error:
        fail(f'PORT={port} cannot be used on this machine ({error.strerror}): another program may use it')


def check_tool(script: str, arguments: list[str], processes: int, here: int | None) -> None:
    """Lets tools/train.py or tools/test.py check its command line; other scripts are started as they are.

    ``here`` is the number of processes on this machine, None for a machine that starts none.
    """
    if Path(script).resolve() not in (HERE.parent / 'train.py', HERE.parent / 'test.py'):
        return
    from partialnet_mm.engine.runners.command_line import CHECKED
    from partialnet_mm.engine.runners.missing import require_gpus
    from partialnet_mm.engine.runners.user_errors import command
    spec = importlib.util.spec_from_file_location('tool', script)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    sys.argv = [script, *arguments]

    @command
    def check() -> None:
        parser, args = tool.parse_args()
        note = here and require_gpus(here, (args.cfg_options or {}).get('env_cfg.dist_cfg.backend'))
        tool.prepare(parser, args, here is not None)
        if note:
            print(f'torchrun.sh: {note}', file=sys.stderr)

    # What the launcher tells the processes: a tool may divide its batch among them.
    variable = 'WORLD_SIZE' if here else 'SLURM_NTASKS'
    os.environ[variable] = str(processes)
    check()
    del os.environ[variable]
    os.environ[CHECKED] = '1'


def main() -> None:
    if sys.argv[1] == '--check':
        processes, script, *arguments = sys.argv[2:]
        check_tool(script, arguments, int(processes), None)
        return
    processes, script, *arguments = sys.argv[1:]
    machines, rank, address = check_variables()
    find_port(rank)
    check_tool(script, arguments, machines * int(processes), int(processes))
    endpoint = address, str(find_port(rank))
    restarts = os.environ.get('RESTARTS') or '0'
    options = [f'--nnodes={machines}', f'--nproc_per_node={processes}', f'--node_rank={rank}']
    if restarts == '0':
        options += [f'--master_addr={address}', f'--master_port={endpoint[1]}']
    else:
        # The other machines wait while the first one checks the data.
        options += ['--rdzv_backend=c10d', f'--rdzv_endpoint={":".join(endpoint)}', '--rdzv_conf=read_timeout=900',
                    f'--rdzv_id={os.environ.get("SLURM_JOB_ID") or "partialnet"}', f'--max_restarts={restarts}']
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    try:
        run.main([*options, str(HERE / 'report_status.py'), script, *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f'torchrun.sh: process {rank} was the first to fail, with status {failure.exitcode}', file=sys.stderr)
        sys.exit(1)
    except SignalException:
        sys.exit(1)


if __name__ == '__main__':
    main()
