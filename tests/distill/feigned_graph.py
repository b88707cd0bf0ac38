"""A graph on the CPU: every operation of an iteration is recorded and can be run again.

What a CUDA graph would get wrong goes wrong here too: numbers that the host computed anew for each
iteration, inputs that lie elsewhere, results that are read from other tensors. Kernels of the
`cuda` backend (compiled for the CPU) are recorded as launches, all else as torch's operations.
"""

from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pecker_fast import backends
from pecker_fast.backends import device, device_tables, uploads
from pecker_fast.backends.work import Hyperparameters

LAUNCHES = ("advance", "masked_adamw", "salient", "salient_one", "sum_squares")


class Recorder(TorchDispatchMode):
    """Runs operations and notes how to run them again, into the same results.

    Refuses what a capture does: to wait for the device, or copy to it from memory that is not
    pinned, as a tensor made of host numbers is.
    """

    FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "unique", "masked_select")

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(name in str(func) for name in self.FORBIDDEN):
            raise RuntimeError(f"{func} during a capture")
        out = func(*args, **kwargs)
        inputs = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        fresh = [t for t in outputs if id_of(t) not in inputs and t.numel()]

        def again():
            results = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
            for old, new in zip(outputs, results, strict=True):
                if any(old is t for t in fresh):
                    old.copy_(new)

        self.log.append(again)
        return out


def id_of(tensor):
    return tensor.untyped_storage().data_ptr()


class FeignedCapture:
    """As `graph.CudaCapture`. Recording does the work, so the first replay has nothing to do."""

    def __init__(self, monkeypatch):
        self.captures = self.replays = 0
        self._monkeypatch = monkeypatch

    def aside(self, work):
        return work()

    def capture(self, work):
        self.captures += 1
        log = []
        kernels = backends.select("cuda", "cpu").kernels
        with self._monkeypatch.context() as patch:
            patch.setattr(device, "is_capturing", lambda device: True)
            for module in (device_tables, uploads):
                patch.setattr(module, "upload", forbidden)
            of = Hyperparameters.of  # which reads a learning rate that is on the CPU
            patch.setattr(Hyperparameters, "of", lambda g: replace(of({**g, "lr": 0}), lr=g["lr"]))
            for name in LAUNCHES:
                launch = getattr(kernels, name)

                def record(*args, launch=launch):
                    log.append(lambda: launch(*args))
                    return launch(*args)

                patch.setattr(kernels, name, record)
            with Recorder(log):
                losses = work()
        done = iter([True])

        def replay():
            self.replays += 1
            if not next(done, False):
                with torch._C._AutoDispatchBelowAutograd():  # gradients are among what is recorded
                    for again in log:
                        again()

        return losses, replay

    def check(self):
        pass


def forbidden(*args):
    raise RuntimeError("a table is uploaded from unpinned memory during a capture")
