"""A bit that flips in a file of a run is noticed or harmless: the result never differs."""

import random
import shutil
import warnings

import pytest
from tiny_models import model_of_shapes
from toys import assert_same_bits, toy_objective

from pecker_fast import cli
from pecker_fast.distill import PeckerTrainer, RunDirectory
from pecker_fast.masks.mask import SaliencyMask


def flip(file, places):
    """Flip one bit of a file."""
    content = bytearray(file.read_bytes())
    content[places.randrange(len(content))] ^= 1 << places.randrange(8)
    file.write_bytes(content)


def train(path):
    """Train to the end, or go on to it; the generator's weights."""
    with RunDirectory(path) as directory:
        trainer = PeckerTrainer(toy_objective(), run_directory=directory)
        for _ in trainer.run():
            pass
    return trainer.generator.state_dict()


@pytest.mark.slow
def test_in_the_newest_checkpoint(tmp_path):
    whole = train(tmp_path / "whole")
    places, noticed = random.Random(0), 0
    for number in range(40):
        run = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", run)
        flip(run / "checkpoint-00000006.pt", places)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert_same_bits(train(run), whole)
        noticed += any("checkpoint-00000006.pt is damaged" in str(one.message) for one in said)
        shutil.rmtree(run)
    assert noticed >= 10  # the rest hit padding and headers that nobody reads


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
