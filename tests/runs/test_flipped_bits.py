"""A bit that flips in a file of a run is noticed or harmless: the result never differs."""

import random
import shutil

import pytest
from tiny_models import model_of_shapes

from pecker_fast import cli
from pecker_fast.masks.mask import SaliencyMask


def flip(file, places):
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[places.randrange(len(content))] ^= 1 << places.randrange(8)
    file.write_bytes(content)


@pytest.mark.slow
def test_in_every_other_file_of_a_run(tmp_path, capsys):
    model, whole, run = tmp_path / "model", tmp_path / "whole", tmp_path / "run"
    model_of_shapes().save(model)
    command = [
        "erase", str(model), "--forget", "star", "--override", "circle", "--iterations", "2",
        "--set", "batch_size=2", "--set", "saliency.batches=1", "--set", "saliency.batch_size=2",
        "--set", "generator.lr=1e-3", "--out",
    ]  # fmt: skip
    assert cli.main([*command, str(whole)]) == 0
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    files = [file for file in sorted(whole.rglob("*")) if file.is_file() and file.suffix != ".pt"]
    assert {"config.yaml", "mask.safetensors", "start.json"} <= {file.name for file in files}
    places = random.Random(1)
    for file in files:
        shutil.copytree(whole, run)
        flip(run / file.relative_to(whole), places)
        capsys.readouterr()
        code = cli.main([*command, str(run)])
        if code == 0:
            for made in (weights, "frozen.json"):
                assert (run / made).read_bytes() == (whole / made).read_bytes(), file
            mask = "mask.safetensors"  # the order of its metadata is random
            assert SaliencyMask.load(run / mask) == SaliencyMask.load(whole / mask), file
        else:
            assert code == 2 and str(run) in capsys.readouterr().err, file
        shutil.rmtree(run)
