"""Work beside other work of an iteration: a second stream of the device, and what waits for it.

Events order the two, so a capture records them as edges of its graph. Autograd runs each node of a
backward pass on the stream of its forward pass, and lets streams wait for each other's gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["SideStream"]


class SideStream:
    """A second stream, which starts behind what came before and is joined where it is needed."""

    def __init__(self, device: torch.device) -> None:
        """Make it on `device`."""
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """What is launched in this block waits for all that came before, and nothing for it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self, *made: Tensor) -> None:
        """The current stream goes on behind the side's work, and may read what was made there.

        Args:
            made: Tensors that it reads; the side's later work does not get their memory before.
        """
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(current)
