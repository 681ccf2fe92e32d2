# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
"""Checks the environment variables of torchrun.sh and prints the port; wrong ones are an error before anything starts.

torchrun itself would wait for machines that never come.
"""
import os
import re
import socket
import sys


def number(name: str, default: int, least: int, most: float, allowed: str) -> int:
    """The value of a variable; exits with 2 if it is no number in the range."""
    value = os.environ.get(name) or str(default)
    if not re.fullmatch('[0-9]+', value) or not least <= int(value) <= most:
        fail(f'{name}={value} is wrong: {allowed} is needed')
    return int(value)


def fail(message: str) -> None:
    print(f'torchrun.sh: {message}', file=sys.stderr)
    sys.exit(2)


def main() -> None:
    machines = number('NNODES', 1, 1, float('inf'), 'a number of machines, from 1 up')
    rank = number('NODE_RANK', 0, 0, machines - 1, f'a number from 0 to {machines - 1}, below NNODES={machines},')
    number('RESTARTS', 0, 0, float('inf'), 'a number from 0 up')
    port = number('PORT', 1, 1, 65535, 'a port from 1 to 65535') if os.environ.get('PORT') else 0
    if machines > 1:
        for name, meaning in (('PORT', 'the same on every machine'), ('NODE_RANK', 'another on each machine'),
                              ('MASTER_ADDR', 'the machine of NODE_RANK=0')):
            if not os.environ.get(name):
                fail(f'NNODES={machines} needs {name}, {meaning}')
    address = os.environ.get('MASTER_ADDR') or '127.0.0.1'
    try:
        socket.getaddrinfo(address, port)
    except (OSError, UnicodeError) as error:
        fail(f'MASTER_ADDR={address} is wrong: no machine of this name is known ({error})')
    if rank == 0:
        try:
            with socket.create_server(('', port)) as server:
                port = server.getsockname()[1]
        except OSError as error:
            fail(f'PORT={port} cannot be used on this machine ({error.strerror}): another program may use it')
    print(port)


if __name__ == '__main__':
    main()
