"""docs/loops in one process: plain torch, Accelerate, Lightning, a diffusers script."""

import copy

import pytest
import torch
from classes import batches_of, classifier, loss_on
from loop_pages import assert_same, check, copied, run, saved_mask
from tiny_language import batches, loss_of, sentences, tiny_llama
from tiny_models import tiny_scheduler, tiny_unet

pytestmark = pytest.mark.slow


def loader(steps):
    inputs, labels = map(torch.cat, zip(*batches_of(steps), strict=True))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), 16)


def test_plain_torch():
    model = classifier(norm=True)
    before, loss = copied(model), loss_on(model)
    mask = saved_mask(model)
    names = run("plain-torch", {"model": model, "data": batches_of(40), "device": "cpu"}, 0, 1)
    check(before, copied(model), mask)
    assert loss_on(model) < 0.8 * loss
    average = names["average"]
    assert average.n_averaged == 10
    check(before, copied(average.module), mask)
    assert loss_on(average.module) < 0.8 * loss
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_plain_torch_resumes():
    model = classifier(norm=True)
    saved_mask(model)
    data = batches_of(40)
    names = run("plain-torch", {"model": model, "data": data[:20], "device": "cpu"}, 0, 1)
    kinds = ("model", "optimizer", "schedule", "scaler")
    torch.save({kind: names[kind].state_dict() for kind in kinds}, "half.pt")
    again = {"model": classifier(seed=8, norm=True), "data": data[20:30], "device": "cpu"}
    run("plain-torch", again, 0)
    for kind, saved in torch.load("half.pt", weights_only=True).items():
        again[kind].load_state_dict(saved)
    for going_on in (again, names):
        run("plain-torch", going_on | {"data": data[20:30]}, 1)
    assert_same(copied(again["model"]), copied(model))


def test_accelerate():
    pytest.importorskip("accelerate", reason="pip install 'pecker-fast[loops]'")
    model = tiny_llama()
    before, loss = copied(model), loss_of(model)
    mask = saved_mask(model)
    names = run("accelerate", {"model": model, "data": batches(sentences(64))}, 0, 1)
    check(before, copied(model), mask)
    assert loss_of(model) < loss - 0.03
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(3e-3 * 0.9**8)
    again = run("accelerate", {"model": tiny_llama(), "data": batches(sentences(64))}, 0)
    again["accelerator"].load_state("state")
    for going_on in (names, again):
        run("accelerate", going_on, 1)
    assert_same(copied(again["model"]), copied(model))


def test_lightning():
    pytest.importorskip("lightning", reason="pip install 'pecker-fast[loops]'")
    model = classifier()
    before, loss = copied(model), loss_on(model)
    mask = saved_mask(model)
    names = run("lightning", {"model": model, "data": loader(8)}, 0, 1)
    check(before, copied(model), mask)
    assert loss_on(model) < 0.9 * loss
    names["trainer"].save_checkpoint("last.ckpt")
    assert names["trainer"].optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2 * 0.9**4)
    # On for two epochs, here and in another model that starts from the file.
    lightning = names["lightning"]
    ends = []
    for start in (copy.deepcopy(model), classifier(seed=8)):
        trainer = lightning.Trainer(max_epochs=6, **names["options"])
        trainer.fit(names["Tuning"](start), loader(8), ckpt_path="last.ckpt")
        ends.append(copied(start))
    assert_same(*ends)
    assert any(not torch.equal(ends[0][name], value) for name, value in copied(model).items())


def test_diffusers_script():
    pytest.importorskip("accelerate", reason="pip install 'pecker-fast[loops]'")
    torch.manual_seed(1)
    unet = tiny_unet().train()
    before = copied(unet)
    mask = saved_mask(unet)
    images = torch.randn(2, 1, 8, 8).repeat(80, 1, 1, 1)
    labels = torch.arange(3).repeat(54)[:160]
    dataset = torch.utils.data.TensorDataset(images, labels)
    losses = []
    names = {"unet": unet, "noising": tiny_scheduler()}
    names["data"] = torch.utils.data.DataLoader(dataset, 4)
    run("diffusers", names, 0)
    backward = names["accelerator"].backward
    names["accelerator"].backward = lambda loss: (losses.append(loss.item()), backward(loss))
    run("diffusers", names, 1)
    check(before, copied(unet), mask)
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    average = dict(zip(before, names["average"].shadow_params, strict=True))
    check(before, average, mask)
