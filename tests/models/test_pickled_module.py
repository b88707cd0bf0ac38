"""Pickled modules: their tensors come out, and nothing that the file names is run."""

import copy
import os
import pickle
from collections import OrderedDict

import pytest
import torch
from tiny_pipeline import save_tiny_pipeline
from torch import nn

from pecker_fast import cli
from pecker_fast.errors import PeckerError
from pecker_fast.models.pickled_module import read_pickled_module
from pecker_fast.models.pipeline import load_unet


def dump(content, path):
    path.write_bytes(pickle.dumps(content))
    return path


class Odd(nn.Module):
    """With everything that a module may keep besides."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 3, 1), nn.GroupNorm(1, 3))
        self.shared = self.inner[0].weight
        self.register_parameter("absent", None)
        self.register_buffer("halves", torch.arange(6).half().view(2, 3).t())
        self.dtype, self.size = torch.float16, torch.Size([2, 3])
        self.notes = OrderedDict(a={1, 2}, b=[slice(3), print])


def test_tensors_are_those_of_the_state_dict(tmp_path):
    module = Odd().double()
    found = read_pickled_module(dump({"ema": module}, tmp_path / "m.pkl"), "ema")
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pickled") / "pipe"
    return folder, save_tiny_pipeline(folder).unet


def test_a_generator_of_sid_lsg_becomes_a_unet_folder(pipeline, tmp_path):
    folder, unet = pipeline
    generator = copy.deepcopy(unet).half()
    with torch.no_grad():
        generator.conv_in.weight += 1
    path = dump({"ema": generator}, tmp_path / "batch512_t625.pkl")
    command = ["convert", str(path), "--like", str(folder), "--out", str(tmp_path / "one-step")]
    assert cli.main(command) == 0
    network, said = load_unet(tmp_path / "one-step")
    assert (said["kind"], said["t_init"]) == ("generator", 625)
    for name, value in generator.state_dict().items():
        assert torch.equal(network.state_dict()[name], value.float())


class Runs:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_no_code_in_the_file_is_run(pipeline, tmp_path):
    _, unet = pipeline
    place, module = tmp_path / "ran", copy.deepcopy(unet)
    module.hidden = Runs(place)
    found = read_pickled_module(dump({"ema": module, "x": Runs(place)}, tmp_path / "m.pkl"))
    assert found.keys() == unet.state_dict().keys() and not place.exists()
    with pytest.raises(PeckerError, match=r"m\.pkl"):
        read_pickled_module(dump({"ema": Runs(place)}, tmp_path / "m.pkl"))
    assert not place.exists()


def test_a_generator_of_another_network(pipeline, tmp_path, capsys):
    path = dump({"ema": nn.Linear(2, 2)}, tmp_path / "m.pkl")
    command = ["convert", str(path), "--like", str(pipeline[0]), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "missing" in capsys.readouterr().err and not (tmp_path / "out").exists()
