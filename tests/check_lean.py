"""Run where the wheel was installed with torch, numpy and safetensors only: the core works there.

Usage: python check_lean.py README. Not a pytest file: it must not see the source tree, nor any
package that the tests need.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

EXTRAS = ("diffusers", "transformers", "pydantic", "yaml", "click", "tqdm", "matplotlib")

present = [name for name in EXTRAS if importlib.util.find_spec(name)]
assert not present, f"this environment is not lean: it has {', '.join(present)}"

blocks = re.findall(r"```python\n(.*?)```", Path(sys.argv[1]).read_text(), flags=re.S)
assert blocks and "MaskedAdamW" in blocks[0], "the README's first block is the optimizer's"
names = {}
exec(compile(blocks[0], "README", "exec"), names)

import torch  # noqa: E402

from pecker_fast import (  # noqa: E402
    MaskedAdamW,
    SaliencyMask,
    apply_patch,
    saliency_scores,
    save_patch,
)

model = torch.nn.Linear(8, 8)
start = {name: p.detach().clone() for name, p in model.named_parameters()}
before = torch.nn.Linear(8, 8)
before.load_state_dict(model.state_dict())
scores = saliency_scores(model, [lambda: model(torch.ones(1, 8)).square().sum()])
mask = SaliencyMask.from_scores(scores, density=0.25)
optimizer = MaskedAdamW(model.named_parameters(), mask=mask)
model(torch.ones(1, 8)).square().sum().backward()
optimizer.step()
moved = sum(int((p.detach() != start[name]).sum()) for name, p in model.named_parameters())
assert 0 < moved <= 18, moved  # a quarter of 72 entries
with tempfile.TemporaryDirectory() as folder:
    save_patch(Path(folder, "erased.safetensors"), before, model, mask)
    apply_patch(before, Path(folder, "erased.safetensors"))
for ours, theirs in zip(before.parameters(), model.parameters(), strict=True):
    assert torch.equal(ours, theirs)

command = subprocess.run(
    [Path(sys.executable).parent / "pecker-fast", "info"],
    capture_output=True,
    text=True,
    check=False,
)
assert command.returncode == 2, command
assert "pecker-fast[erase]" in command.stderr and "Traceback" not in command.stderr, command.stderr
print("the core works with torch, numpy and safetensors only")
