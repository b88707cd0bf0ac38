"""Starts `pecker-fast` in several processes, forked from the server of processes.py."""

import multiprocessing
from dataclasses import dataclass

from fault_jobs import command
from processes import PRELOADED, _free_port

PATIENCE = 60  # seconds until a process counts as hanging: "the others stop within a minute"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (-9: killed, None: it hung) and the lines it said."""

    code: int
    lines: list[str]

    @property
    def errors(self):
        """Its messages, without progress."""
        return [line for line in self.lines if line.startswith("pecker-fast")]


def run_commands(folder, arguments, faults, *, patience=PATIENCE, **variables):
    """`pecker-fast ARGUMENTS` on as many processes as there are `faults`, one of each (or None).

    `arguments` may also be a list of lists: one for each process. Where a process is stopped by
    SIGSTOP, the others are waited for, and then it is killed.
    """
    size = len(faults)
    each = arguments if isinstance(arguments[0], list) else [arguments] * size
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, "pecker_fast.erasure.api"])
    port = _free_port()
    said = [folder / f"rank{rank}.txt" for rank in range(size)]
    processes = [
        context.Process(
            target=command,
            args=(
                [str(a) for a in each[rank]], rank, size, port, str(said[rank]),
                faults[rank], variables,
            ),
        )
        for rank in range(size)
    ]  # fmt: skip
    for process in processes:
        process.start()
    stopped = [bool(fault) and fault.startswith("stopped") for fault in faults]
    try:
        for process in [p for p, stops in zip(processes, stopped, strict=True) if not stops]:
            process.join(patience)
            assert process.exitcode is not None, f"a process hangs: {[p.read_text() for p in said]}"
    finally:
        for process in processes:
            process.kill()
            process.join()
    texts = [path.read_text(errors="replace").replace("\r", "\n").splitlines() for path in said]
    return [Ended(p.exitcode, lines) for p, lines in zip(processes, texts, strict=True)]
