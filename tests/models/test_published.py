"""Files as SA, SalUn, SFD and EraseDiff write them, and files that are something else."""

import argparse
import json
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from pecker_fast.cli import convert, main
from pecker_fast.errors import PeckerError
from pecker_fast.models import ModelFolder, folder, published
from pecker_fast.models.ddpm import DDPMUNet
from pecker_fast.models.published import network_from, read_checkpoint

Weights = dict[str, Tensor]
SIZES = {"num_classes": 3, "channels": 32, "channel_mult": (1, 2), "blocks_per_level": 1}


def weights(seed: int, prefix: str = "", **sizes: Any) -> Weights:
    torch.manual_seed(seed)
    network = DDPMUNet(**(SIZES | {"sample_size": 32} | sizes))
    return OrderedDict({prefix + name: value for name, value in network.state_dict().items()})


def adam(network: Weights) -> dict[str, Any]:
    """The state dict of `torch.optim.Adam` over some parameters."""
    params = [torch.nn.Parameter(value.clone()) for value in list(network.values())[:3]]
    optimizer = torch.optim.Adam(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer.state_dict()


PSI, MODEL, EMA = weights(1), weights(2), weights(3)
WRAPPED = weights(2, "module.")
TRAINED = {"ema": EMA, "model": MODEL}
DISTILLED = {"ema": EMA, "generator": MODEL, "pseudo-score": PSI}
# What torch.save was given, which slots that is, and the step.
LAYOUTS: dict[str, tuple[Any, dict[str, Weights], int | None]] = {
    "trained": ([MODEL, adam(MODEL), 799_999, EMA], TRAINED, 799_999),
    "under DataParallel": ([WRAPPED, adam(MODEL), 1, EMA], TRAINED, 1),
    "wrapped twice": ([weights(2, "_orig_mod.module."), adam(MODEL), 1], {"model": MODEL}, 1),
    "no EMA": ([MODEL, adam(MODEL), 7], {"model": MODEL}, 7),
    "with an epoch": ([MODEL, adam(MODEL), 3, 900, EMA], TRAINED, 900),
    "distilled": ([PSI, adam(PSI), MODEL, adam(MODEL), 49_999, EMA], DISTILLED, 49_999),
    "distilled, no EMA": (
        [PSI, adam(PSI), WRAPPED, adam(MODEL), 5],
        {"generator": MODEL, "pseudo-score": PSI},
        5,
    ),
    "distilled, early": (
        [None, None, MODEL, None, 10, EMA],
        {"ema": EMA, "generator": MODEL},
        10,
    ),
    "weights alone": (MODEL, {"model": MODEL}, None),
    "by name": ({"model": WRAPPED, "optimizer": adam(MODEL), "step": 2, "ema": EMA}, TRAINED, 2),
    "EMA by name": ({"ema_model": EMA, "epoch": 2}, {"ema": EMA}, None),
}


def assert_same(found: Any, expected: Weights) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_layouts(layout: str, zipped: bool, tmp_path: Path) -> None:
    content, slots, step = LAYOUTS[layout]
    torch.save(content, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "ckpt.pth")
    assert (list(read.slots), read.step) == (list(slots), step)
    assert read.is_distilled == ("generator" in slots)
    for slot, expected in slots.items():
        assert_same(read.slots[slot], expected)
        network = read.network(slot)
        assert_same(network.state_dict(), expected)
        assert not network.training
    assert read.choose() == next(iter(slots))
    with pytest.raises(PeckerError, match=r"has no slot 'other'; it has "):
        read.choose("other")


def test_only_generators_take_one_step(tmp_path: Path) -> None:
    torch.save(LAYOUTS["distilled"][0], tmp_path / "ckpt.pth")
    read = read_checkpoint(tmp_path / "ckpt.pth")
    one_step = {slot: read.is_generator(slot) for slot in read.slots}
    assert one_step == {"ema": True, "generator": True, "pseudo-score": False}
    torch.save(LAYOUTS["trained"][0], tmp_path / "ckpt.pth")
    read = read_checkpoint(tmp_path / "ckpt.pth")
    assert not any(read.is_generator(slot) for slot in read.slots)


@pytest.mark.parametrize("preset", ["cifar10", "stl10"])
def test_presets_are_read_off_the_shapes(preset: str) -> None:
    with torch.device("meta"):
        expected = getattr(DDPMUNet, preset)()
    sizes = published._sizes(expected.state_dict(), "here")
    assert sizes == {name: expected.config[name] for name in sizes}
    assert set(expected.config) - set(sizes) == {
        "sample_size", "norm_num_groups", "dropout", "_use_default_values",
    }  # fmt: skip


@pytest.mark.parametrize(
    "sizes",
    [
        {"sample_size": 64, "channel_mult": (1, 1, 2), "attention_levels": (2,)},
        {"sample_size": 16, "channel_mult": (1, 3), "attention_levels": (0,), "in_channels": 1},
        {"blocks_per_level": 3, "num_classes": 7},
        {"null_class": False},
    ],
)
def test_sizes_are_read_off_the_shapes(sizes: dict[str, Any]) -> None:
    network = network_from(weights(0, **sizes), "here")
    torch.manual_seed(0)
    expected = DDPMUNet(**(SIZES | {"sample_size": 32} | sizes))
    ignored = {"_use_default_values": []}
    assert network.config | ignored == expected.config | ignored
    assert network_from(weights(0), "here", sample_size=8).config.sample_size == 8


def _without(network: Weights, *names: str) -> Weights:
    return {name: value for name, value in network.items() if name not in names}


OTHERS: dict[str, tuple[Callable[[], Weights], str]] = {
    "missing": (
        lambda: _without(MODEL, "norm_out.bias", "mid.attn_1.q.weight"),
        r"2 missing: mid.attn_1.q.weight, norm_out.bias; it has \d+ of 334 tensors",
    ),
    "unexpected": (
        lambda: MODEL | {"logvar": torch.zeros(1000)},
        r"does not fit: 1 unexpected: logvar; it has .* cifar10 network and .* stl10 network",
    ),
    "shape": (
        lambda: MODEL | {"conv_out.weight": torch.zeros(6, 32, 3, 3)},
        r"1 shaped otherwise: conv_out.weight \(6, 32, 3, 3\) instead of \(3, 32, 3, 3\)",
    ),
    "many": (
        lambda: {name: value for name, value in MODEL.items() if not name.startswith("up.")},
        r"\d+ missing: up.0.block.0.norm1.weight, .* and \d+ more",
    ),
    "hard-coded class width": (
        lambda: MODEL | {"mid.block_1.temb_cemb_proj.weight": torch.zeros(64, 640)},
        r"mid.block_1.temb_cemb_proj.weight \(64, 640\) instead of \(64, 256\)",
    ),
    "unconditional": (
        lambda: _without(MODEL, "classes_emb.weight"),
        "without classes_emb.weight; an unconditional DDPM knows no classes",
    ),
    "diffusers": (
        lambda: {"conv_in.weight": MODEL["conv_in.weight"], "down_blocks.0.x": torch.zeros(1)},
        "looks like a diffusers or Stable Diffusion network",
    ),
    "a classifier": (
        lambda: {"fc.weight": torch.zeros(10, 4)},
        "another architecture, without conv_in.weight, .* it has 1 tensors, the first fc.weight",
    ),
    "narrow": (
        lambda: weights(0, channels=8, norm_num_groups=8),
        "another architecture or image size, .*8 channels does not divide into 32 groups",
    ),
    "uneven": (
        lambda: MODEL | {"down.1.block.0.conv1.weight": torch.zeros(40, 32, 3, 3)},
        "a level of 40 channels is no multiple of the base width 32",
    ),
    "a level left out": (
        lambda: {name.replace("down.1.", "down.2."): value for name, value in MODEL.items()},
        "without down.1.block.0.conv1.weight",
    ),
    "diverged": (
        lambda: MODEL | {"norm_out.bias": torch.full((32,), torch.nan)},
        "norm_out.bias holds NaN or infinity",
    ),
    "scalars": (lambda: dict.fromkeys(MODEL, torch.tensor(0.0)), "another architecture"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name: str) -> None:
    make, message = OTHERS[name]
    with pytest.raises(PeckerError, match=message) as error:
        network_from(make(), "file.pth, slot ema")
    assert str(error.value).startswith("file.pth, slot ema: ")


def _torch_save(content: Any) -> Callable[[Path], Any]:
    return lambda path: torch.save(content, path)


def _truncated(zipped: bool) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        torch.save([MODEL], path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:-1000])

    return write


def _zip_of_something(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")


class Touches:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return subprocess.check_call, (["touch", str(self.path)],)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (
        lambda path: path.write_text("<html>404</html>"),
        r"begins with b'<html>40'.*web page",
    ),
    "JSON": (lambda path: path.write_text('{"weights": {}}'), r"nor a safetensors file"),
    "truncated safetensors": (
        lambda path: path.write_bytes(save(dict(MODEL))[:-1000]),
        "cannot be read as a safetensors file, it may be truncated: copy or download it again",
    ),
    "safetensors, no header": (
        lambda path: path.write_bytes(b"\x02" + bytes(7) + b"{"),
        "cannot be read as a safetensors file",
    ),
    "empty": (lambda path: path.touch(), r"not a checkpoint.*b''"),
    "folder": (lambda path: path.mkdir(), r"is a folder; expected a checkpoint file"),
    "missing": (lambda path: None, r"no such file"),
    "truncated": (_truncated(True), "may be truncated: copy or download it again"),
    "truncated, older format": (_truncated(False), "may be truncated: copy or download it again"),
    "another zip": (_zip_of_something, "cannot be read as a checkpoint"),
    "pickled module": (
        lambda path: path.write_bytes(pickle.dumps({"G": argparse.Namespace(a=1)})),
        r"pickled Python object, and reading it would run code.*state_dict\(\)",
    ),
    "module": (_torch_save(torch.nn.Linear(1, 1)), r"holds a torch.nn.modules.linear.Linear, and"),
    "namespace": (
        _torch_save({"model": MODEL, "args": argparse.Namespace(a=1)}),
        "holds a argparse.Namespace, and reading it would run code",
    ),
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path),
        "a TorchScript module, and reading it would run code",
    ),
    "step of numpy": (
        _torch_save([MODEL, adam(MODEL), np.int64(3), EMA]),
        "multiarray.scalar, and reading it would run code.* keeps the EMA, or .*state_dict",
    ),
    "no network": (_torch_save([adam(MODEL), 3]), "no network in it; .* found a list of dict, int"),
    "mask": (_torch_save({"x": 1, "y": [2]}), "no network in it; .* a dictionary with x, y"),
    "nothing": (_torch_save([]), "found a list of nothing"),
    "tensor": (_torch_save(torch.zeros(3)), "no network in it; .* found a Tensor"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", FILES)
def test_other_files(name: str, tmp_path: Path) -> None:
    write, message = FILES[name]
    write(tmp_path / "ckpt.pth")
    with pytest.raises(PeckerError, match=message) as error:
        read_checkpoint(tmp_path / "ckpt.pth")
    assert str(error.value).startswith(f"{tmp_path}/ckpt.pth: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_no_code_is_run(write: Callable[[Any, Path], Any], tmp_path: Path) -> None:
    write([MODEL, Touches(tmp_path / "harm")], tmp_path / "ckpt.pth")
    with pytest.raises(PeckerError, match="would run code from the file"):
        read_checkpoint(tmp_path / "ckpt.pth")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("layout", ["trained", "distilled", "distilled, early"])
def test_the_remedy_for_a_refused_list_keeps_every_network(layout: str, tmp_path: Path) -> None:
    path, again = tmp_path / "ckpt.pth", tmp_path / "weights.pth"
    content, slots, _ = LAYOUTS[layout]
    torch.save([np.int64(x) if isinstance(x, int) else x for x in content], path)
    with pytest.raises(PeckerError) as error:
        read_checkpoint(path)
    remedy = str(error.value).split("`")[3].replace("'weights.pth'", "again")
    loaded = torch.load(path, weights_only=False)
    eval(remedy, {"torch": torch, "x": loaded, "again": again})
    read = read_checkpoint(again)
    assert list(read.slots) == list(slots)
    for slot, expected in slots.items():
        assert_same(read.slots[slot], expected)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_safetensors_file_is_a_state_dict_alone(prefix: str, tmp_path: Path) -> None:
    save_file(weights(2, prefix), tmp_path / "weights.bin")  # the name does not matter
    read = read_checkpoint(tmp_path / "weights.bin")
    assert (list(read.slots), read.step) == (["model"], None)
    found = read.network().state_dict()
    assert_same({name: found[name] for name in MODEL}, MODEL)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["convert", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_knows_every_slot() -> None:
    assert convert._SLOTS == published.SLOTS


def test_convert_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(LAYOUTS["under DataParallel"][0], tmp_path / "ckpt.pth")
    code, out, err = run(capsys, tmp_path / "ckpt.pth", "--out", tmp_path / "model")
    assert (code, err) == (0, "")
    assert "took slot ema of ema, model, step 1\n" in out
    assert "3x32x32 images, width 32 x 1, 2\n" in out
    folder = ModelFolder.load(tmp_path / "model")
    assert_same(folder.unet.state_dict(), EMA)
    assert (folder.kind, folder.null_label) == ("teacher", 3)
    assert folder.class_names == ("class 0", "class 1", "class 2")
    scheduler = dict(folder.scheduler.config)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(folder.scheduler.betas.double(), betas, rtol=1e-6, atol=0)
    assert (scheduler["clip_sample"], scheduler["prediction_type"]) == (False, "epsilon")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pth", "model"]


def test_convert_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(MODEL, tmp_path / "w.safetensors")
    code, out, err = run(capsys, tmp_path / "w.safetensors", "--out", tmp_path / "model")
    assert (code, err) == (0, "") and "took slot model of model\n" in out
    folder = ModelFolder.load(tmp_path / "model")
    assert_same(folder.unet.state_dict(), MODEL)
    assert (folder.kind, folder.null_label) == ("teacher", 3)


@pytest.mark.parametrize(
    ("options", "expected", "kind", "t_init", "said"),
    [
        ((), EMA, "generator", 440, "a one-step generator"),
        (("--slot", "generator"), MODEL, "generator", 440, "a one-step generator"),
        (("--slot", "pseudo-score"), PSI, "teacher", None, "is not the teacher"),
    ],
)
def test_convert_a_distilled_checkpoint(
    options: tuple[str, ...],
    expected: Weights,
    kind: str,
    t_init: int | None,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(LAYOUTS["distilled"][0], tmp_path / "ckpt.pth")
    code, out, _ = run(capsys, tmp_path / "ckpt.pth", "--out", tmp_path / "model", *options)
    assert code == 0 and said in out
    folder = ModelFolder.load(tmp_path / "model")
    assert_same(folder.unet.state_dict(), expected)
    assert (folder.kind, folder.figures.get("t_init")) == (kind, t_init)
    assert folder.figures["converted_from"]["step"] == 49_999


@pytest.mark.parametrize(
    ("options", "sizes", "names"),
    [
        (("--classes", "ant, bee,cat"), {}, ("ant", "bee", "cat")),
        ((), {"num_classes": 10}, published.CLASS_NAMES["cifar10"]),
        (
            (),
            {"num_classes": 10, "channel_mult": (1, 1, 1), "attention_levels": (2,)},
            published.CLASS_NAMES["stl10"],
        ),
        (("--classes", "STL10"), {"num_classes": 10}, published.CLASS_NAMES["stl10"]),
    ],
)
def test_class_names(
    options: tuple[str, ...],
    sizes: dict[str, Any],
    names: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sample_size = 16 * 2 ** (len(sizes.get("channel_mult", (1, 2))) - 1)
    torch.save(weights(0, sample_size=sample_size, **sizes), tmp_path / "ckpt.pth")
    assert run(capsys, tmp_path / "ckpt.pth", "--out", tmp_path / "model", *options)[0] == 0
    assert ModelFolder.load(tmp_path / "model").class_names == names


@pytest.mark.parametrize("classes", ["cifar10", "a,b", "a,b,b", "a,,b"])
def test_class_names_that_do_not_fit(
    classes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(MODEL, tmp_path / "ckpt.pth")
    arguments = (tmp_path / "ckpt.pth", "--out", tmp_path / "model", "--classes", classes)
    code, _, err = run(capsys, *arguments)
    assert code == 2 and f"--classes {classes}: the network has 3 classes" in err
    assert not (tmp_path / "model").exists()


def test_nothing_is_replaced_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(MODEL, tmp_path / "ckpt.pth")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("precious")
    arguments = (tmp_path / "ckpt.pth", "--out", tmp_path / "model")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "exists; add --force to replace it" in err
    # A file that cannot be converted leaves what is there, even with --force.
    (tmp_path / "bad.pth").write_text("text")
    assert run(capsys, tmp_path / "bad.pth", *arguments[1:], "--force")[0] == 2
    assert (tmp_path / "model" / "mine").exists()


def test_force_replaces_a_model_folder_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(MODEL, tmp_path / "ckpt.pth")
    out = tmp_path / "model"
    out.mkdir()
    arguments = (tmp_path / "ckpt.pth", "--out", out, "--force")
    assert run(capsys, *arguments)[0] == 0
    assert run(capsys, *arguments)[0] == 0
    assert json.loads((out / "pecker_fast.json").read_text())["null_label"] == 3
    found = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert found == set(folder.FILES)
    (out / "unet" / "thesis.tex").write_text("precious")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "'unet/thesis.tex'" in err and err.count("\n") == 1
    assert (out / "unet" / "thesis.tex").read_text() == "precious"


def test_force_leaves_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    (out / "unet").mkdir(parents=True)
    weights_file = out / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(dict(MODEL), weights_file)
    before = weights_file.read_bytes()
    for where in (out, out / "unet" / ".."):
        code, _, err = run(capsys, weights_file, "--out", where, "--force")
        assert code == 2 and f"{weights_file}: lies in" in err
    assert weights_file.read_bytes() == before


def test_force_follows_no_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(MODEL, tmp_path / "ckpt.pth")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    code, _, err = run(capsys, tmp_path / "ckpt.pth", "--out", tmp_path / "link", "--force")
    assert code == 2 and "link: is a link" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ckpt.pth", "link", "there"]


def test_no_folder_to_write_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, tmp_path / "x.pth", "--out", tmp_path / "a" / "b")
    assert code == 2 and "no such folder; make it first" in err
