"""What a process is given besides its arguments: variables, streams, its folder."""

from __future__ import annotations

from bad_input.building import case
from bad_input.seeds import COMPARE, CONCEPT, ERASE, EVALUATE, MASK, SAMPLE

LINES = {
    "sample": (SAMPLE, ("model",)), "mask": (MASK, ("model",)),
    "evaluate": (EVALUATE, ("model", "classifier")), "compare": (COMPARE, ("done", "other.json")),
    "info": (("info",), ()), "patch info": (("patch", "info", "patch.safetensors"),
                                            ("patch.safetensors",)),
}  # fmt: skip

VARIABLES = {
    "WORLD_SIZE": ("abc", "-1", "1.5", "99999999999999999999"),
    "RANK": ("abc", "-1"),
    "TMPDIR": ("/nowhere", "", "/dev/null"),
    "HOME": ("/nowhere", "", "/dev/null"),
    "COLUMNS": ("abc", "-1", "0", "1", "999999999999"),
    "LINES": ("-1",),
    "LANG": ("xx_YY.nonsense",),
    "LC_ALL": ("C", "nonsense"),
    "PYTHONIOENCODING": ("ascii",),
    "TERM": ("", "wizard"),
    "NO_COLOR": ("1",),
    "MPLBACKEND": ("wizard",),
    "OMP_NUM_THREADS": ("abc", "-1", "0"),
    "PECKER_FAST_DEBUG": ("",),
    "HF_HUB_OFFLINE": ("wizard",),
    "HF_HOME": ("/dev/null", "/nowhere"),
    "XDG_CACHE_HOME": ("/dev/null",),
    "CUDA_VISIBLE_DEVICES": ("wizard", "-1", "99"),
    "TQDM_MININTERVAL": ("abc",),
    "TQDM_DISABLE": ("1",),
}
"""Of these a run does without, or says why it cannot."""

_PROCESSES = {
    "half of them": {"WORLD_SIZE": "2"},
    "no address": {"WORLD_SIZE": "2", "RANK": "0"},
    "a rank beyond": {"WORLD_SIZE": "2", "RANK": "7", "MASTER_ADDR": "localhost",
                      "MASTER_PORT": "1"},
    "a port of text": {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost",
                       "MASTER_PORT": "abc"},
    "a port beyond": {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost",
                      "MASTER_PORT": "99999999"},
    "ranks of text": {"WORLD_SIZE": "two", "RANK": "zero"},
    "a local rank of text": {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "x"},
}  # fmt: skip

CASES = [
    *(case(f"{name}={value[:20]}", SAMPLE, ("model",), code=(0, 2),
           options={"environment": {name: value}})
      for name, found in VARIABLES.items() for value in found),
    *(case(f"processes: {name}, {command}", *LINES[command], options={"environment": variables})
      for name, variables in _PROCESSES.items() for command in ("sample", "mask", "info")),
    *(case(f"{stream} {place}, {command}", line, needs, code=codes,
           options={stream: place},
           writes=("x.png", "m.safetensors", "m.png", "found.json", "page"))
      for command, (line, needs) in LINES.items()
      for stream, place, codes in (
          ("stdin", "closed", 0), ("stdout", "closed", (0, 1, 2)), ("stderr", "closed", 0),
          ("stdout", "/dev/full", (0, 2)), ("stderr", "/dev/full", (0, 1, 2)),
      )),
    *(case(f"a folder that is gone, {command}", line, (), options={"vanish": True}, code=code)
      for command, line, code in (
          ("sample", SAMPLE, 2), ("erase", ERASE, 2), ("concept", CONCEPT, 2),
          ("info", ("info",), 0),
          ("compare", COMPARE, 2), ("mask", MASK, 2),
      )),
]  # fmt: skip
