"""What the processes of test_ranks.py do: importable by name."""

import time

import torch

from pecker_fast.distributed import ranks as ranks_module
from pecker_fast.errors import PeckerError

DTYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
]  # fmt: skip


def everything():
    """Tensors of all kinds, numbers and strings, in dicts and lists."""
    generator = torch.Generator().manual_seed(7)
    numbers = torch.randint(0, 120, (16, 24), generator=generator, dtype=torch.uint8)
    return {
        "dtypes": [(numbers % 2).bool(), *(numbers.to(dtype, copy=True) for dtype in DTYPES)],
        "shapes": [torch.zeros(0), torch.tensor(3), torch.arange(6).reshape(2, 3).t()],
        "rest": {"int": 2**62, "float": 0.1, "text": "löschen", "none": None, "list": [True, -1]},
    }


def message_of(work):
    """What PeckerError says; an empty string without one."""
    try:
        work()
    except PeckerError as error:
        return str(error)
    return ""


def broadcast_all(ranks, chunk):
    """A nested value from the first; sent in pieces of `chunk` bytes."""
    ranks_module._CHUNK = chunk
    return ranks.broadcast(everything() if ranks.is_first else None)


def gather_and_sum(ranks, totals):
    """All rows of several totals, of two dtypes and shapes; a sum; what one knows or none."""
    gathered = []
    for total in totals:
        rows = torch.arange(total)[ranks.rows(total)]
        images = rows[:, None, None].to(torch.uint8).expand(-1, 2, 3)
        gathered.append([ranks.gather(rows, total), ranks.gather(images, total)])
    summed = torch.full((3,), 10.0**ranks.rank)
    assert ranks.sum_(summed) is summed  # in place
    ranks.wait()
    heard = [ranks.any(ranks.rank == one) for one in (0, ranks.size - 1, ranks.size)]
    return {"gathered": gathered, "sum": summed, "any": heard}


def errors(ranks):
    """An error on the first, foreseen or not, and the next call works again."""
    heard = {}

    def foreseen():
        raise PeckerError("the disk is full; free some space")

    def unforeseen():
        raise PermissionError(13, "Permission denied", "run/mask.safetensors")

    heard["foreseen"] = message_of(lambda: ranks.first(foreseen))
    try:
        heard["unforeseen"] = message_of(lambda: ranks.first(unforeseen))
    except PermissionError as error:
        heard["unforeseen"] = str(error)
    ran = []
    heard["value"] = ranks.first(lambda: ran.append(1) or {"value": 5})
    heard["ran"] = len(ran)
    heard["same"] = message_of(lambda: ranks.check_same("abc", "another model"))
    odd = "abc" if ranks.rank != 1 else "abd"
    heard["differs"] = message_of(lambda: ranks.check_same(odd, "another model"))
    text = f"seed: 0\nlr: {1 + (ranks.rank == 2)}\n"
    heard["lr"] = message_of(lambda: ranks.check_same(text, "another configuration"))
    heard["after"] = ranks.broadcast(ranks.rank + 1)
    return heard


def one_leaves(ranks):
    """The last one leaves without a word while the others wait for it."""
    if ranks.rank == ranks.size - 1:
        return ""
    return message_of(lambda: ranks.sum_(torch.zeros(1)))


def one_is_slow(ranks, seconds, broadcast):
    """One takes longer than a step may wait: before a broadcast or in the step itself."""
    if ranks.rank == 1:
        time.sleep(seconds)
    if broadcast:
        ranks.broadcast("mask")
    total = torch.ones(1)
    return {"heard": message_of(lambda: ranks.sum_(total)), "sum": total.item()}
