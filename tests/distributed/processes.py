"""Runs a function in several processes that talk through gloo on this machine, as torchrun would.

The processes are forked from a server that has no threads and has imported what conftest.py lists.
"""

import io
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import contextmanager
from types import SimpleNamespace

import torch

PATIENCE = 120  # seconds until a process counts as hanging


def run_processes(function, size, *args, **variables):
    """`function(ranks, *args)` on each of `size` processes; returns what each returned.

    The function must be importable by name. What one raises is re-raised here as RuntimeError with
    its traceback. `variables` of the environment must be given: the server does not see later ones.
    """
    return _outcomes(_joined, size, variables, function, *args)


def run_commands(size, *words, largest_file=None):
    """`pecker-fast` on each of `size` processes: exit codes, stdout and stderr, each by rank.

    No file may grow beyond `largest_file` bytes, as on a disk that is full.
    """
    words = tuple(map(str, words))
    return zip(*_outcomes(_command, size, {}, words, largest_file), strict=True)


@contextmanager
def killed_commands(size, *words):
    """`pecker-fast` on each of `size` processes, which SIGKILL ends when the block does."""
    queue, processes = _started(_command, size, {}, tuple(map(str, words)), None)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()
        queue.close()


def _started(work, size, variables, *args):
    context = multiprocessing.get_context("forkserver")
    port = _free_port()
    queue = context.Queue()
    processes = []
    for rank in range(size):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **variables,
        }
        processes.append(context.Process(target=work, args=(queue, rank, environment, *args)))
    for process in processes:
        process.start()
    return queue, processes


def _outcomes(work, size, variables, *args):
    queue, processes = _started(work, size, variables, *args)
    try:
        outcomes = dict(_next(queue, processes) for _ in processes)
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [outcomes[rank] for rank in range(size)]


def _next(queue, processes):
    rank, value, failure = queue.get(timeout=PATIENCE)
    if failure is not None:
        raise RuntimeError(f"rank {rank} of {len(processes)}:\n{failure}")
    return rank, torch.load(io.BytesIO(value), weights_only=True)


def _put(queue, rank, environment, function, *args):
    torch.set_num_threads(1)
    os.environ.update(environment)
    try:
        file = io.BytesIO()  # not torch's sharing of tensors, which needs this process to live on
        torch.save(function(*args), file)
        queue.put((rank, file.getvalue(), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))


def _joined(queue, rank, environment, function, *args):
    from pecker_fast.distributed import Ranks

    os.environ.update(environment)
    ranks = Ranks.join("cpu")
    _put(queue, rank, environment, function, ranks, *args)
    ranks.leave()


def _command(queue, rank, environment, words, largest_file):
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    _put(queue, rank, environment, _say, words)


def _say(words):
    from pecker_fast import cli

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        code = cli.main(list(words))
        sys.stdout.flush()
        sys.stderr.flush()
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(arguments, restarts=0):
    """torchrun itself on two processes: its exit code and all that is said."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
        "--max-restarts", restarts, *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return SimpleNamespace(code=done.returncode, said=done.stdout)


__all__ = ["killed_commands", "run_commands", "run_processes", "torchrun"]
