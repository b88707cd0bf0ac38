"""Runs a function in several processes that talk through gloo on this machine, as torchrun would.

The processes are forked from a server that has imported torch already and has no threads.
"""

import io
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from types import SimpleNamespace

import torch

PRELOADED = ["torch", "pecker_fast.distill.trainer", "pecker_fast.optim.adamw"]
PATIENCE = 120  # seconds until a process counts as hanging


def run_processes(function, size, *args, **variables):
    """`function(ranks, *args)` on each of `size` processes; returns what each returned.

    The function must be importable by name. What one raises is re-raised here as RuntimeError with
    its traceback. `variables` of the environment must be given: the server does not see later ones.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    queue = context.Queue()
    processes = [
        context.Process(target=_work, args=(queue, function, rank, size, port, args, variables))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
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


def _work(queue, function, rank, size, port, args, variables):
    from pecker_fast.distributed import Ranks

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **variables,
    )
    ranks = Ranks.join("cpu")
    try:
        file = io.BytesIO()  # not torch's sharing of tensors, which needs this process to live on
        torch.save(function(ranks, *args), file)
        queue.put((rank, file.getvalue(), None))
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
    ranks.leave()


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


__all__ = ["run_processes", "torchrun"]
