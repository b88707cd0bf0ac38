"""SaliencyMask as a value: check, algebra, equality, immutability, statistics, plot."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pecker_fast.errors import PeckerError
from pecker_fast.masks.mask import ParameterStats, SaliencyMask


def selected(mask):
    return {name: positions.tolist() for name, positions in mask.indices.items()}


# ---- check


def test_check(model, mask):
    mask.check(model)
    mask.check(dict(model.named_parameters()))
    mask.check(model.to("meta"))


def test_check_ignores_frozen_parameters_that_the_mask_lacks(model):
    model[0].requires_grad_(False)
    mask = SaliencyMask.full(model)
    mask.check(model)
    model[0].requires_grad_(True)
    with pytest.raises(PeckerError, match=r"the mask has no '0\.weight', '0\.bias'"):
        mask.check(model)
    SaliencyMask.full(model).check(model.requires_grad_(False))


def test_check_names_everything_that_is_wrong(make_model, mask):
    other = make_model()
    other[1] = nn.LayerNorm(8, bias=False)
    other[3] = nn.Linear(7, 7)
    other.extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(PeckerError) as error:
        mask.check(other)
    message = str(error.value)
    assert "the model has no '1.bias'" in message
    assert "the mask has no 'extra'" in message
    assert "'3.weight' has shape (7, 5) in the mask and (7, 7) in the model" in message
    assert "\n" not in message


def test_check_of_a_model_wrapped_in_data_parallel(model, mask):
    with pytest.raises(PeckerError, match=r"the model has no '0\.weight'.*and 4 more"):
        mask.check(nn.DataParallel(model))


# ---- Set algebra, equality, the protocol of a container


def test_set_algebra_keeps_the_granularity_where_it_can(scores):
    def make(density, granularity, block_size=16):
        return SaliencyMask.from_scores(
            scores, density, granularity=granularity, block_size=block_size
        )

    rows = make(0.2, "out_channel") | make(0.4, "out_channel")
    assert rows.granularity == "out_channel"
    assert (~make(0.2, "block")).granularity == "block"
    assert (make(0.2, "block") | make(0.4, "block", 8)).granularity == "element"
    assert (make(0.2, "out_channel") | make(0.2, "element")).granularity == "element"


def test_results_that_would_be_empty(model, mask):
    with pytest.raises(PeckerError, match="the mask is empty"):
        ~SaliencyMask.full(model)
    with pytest.raises(PeckerError, match="the mask is empty"):
        mask & ~mask


def test_masks_of_different_models_do_not_combine(mask):
    other = SaliencyMask.full({"0.weight": torch.empty(8, 3, 3, 3), "new": torch.empty(2)})
    for operation in (mask.__or__, mask.__and__):
        with pytest.raises(PeckerError, match=r"presence or shape of '0\.bias'.*and 4 more"):
            operation(other)
    with pytest.raises(TypeError):
        mask | {"0.weight": torch.ones(3)}


def test_equality_and_hash(model, scores, mask):
    again = SaliencyMask.from_scores(dict(reversed(scores.items())), 0.3)
    assert again == mask  # no ties, so the order of the parameters does not matter
    assert hash(again) == hash(mask)
    assert len({again, mask, ~mask}) == 2
    assert mask != SaliencyMask.from_scores(scores, 0.31)
    assert mask != "mask"
    flat = {name: torch.Size([shape.numel()]) for name, shape in mask.shapes.items()}
    reshaped = SaliencyMask(mask.indices, flat)
    assert reshaped != mask
    assert reshaped.digest != mask.digest


def test_digest_is_what_it_says():
    """Files and checkpoints hold it: another value is another file format."""
    mask = SaliencyMask.from_dense({"b": torch.tensor([[1, 0], [1, 1]]), "a": torch.tensor(1)})
    expected = hashlib.sha256(b'[["a", []], ["b", [2, 2]]]' + bytes([0b1, 0b1101])).hexdigest()
    assert mask.digest == expected


def test_container_protocol(mask, model):
    names = [name for name, _ in model.named_parameters()]
    assert len(mask) == len(names)
    assert list(mask) == names
    assert "0.weight" in mask
    assert "0.weigth" not in mask
    assert repr(mask) == (
        f"SaliencyMask({mask.nnz} of {mask.numel} entries in 7 parameters, "
        f"density={mask.density:.4g}, granularity='element')"
    )


def test_stats(mask):
    rows = mask.stats()
    assert [row.name for row in rows] == list(mask)
    assert sum(row.nnz for row in rows) == mask.nnz
    assert sum(row.numel for row in rows) == mask.numel
    assert rows[0].density == rows[0].nnz / (8 * 3 * 3 * 3)
    assert ParameterStats("empty", 0, 0).density == 0.0


# ---- Immutability and copies


def test_nothing_can_be_set(mask):
    for name in ("indices", "shapes", "nnz", "digest", "new"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(mask, name, None)
        with pytest.raises(AttributeError):
            delattr(mask, name)
    for mapping in (mask.indices, mask.shapes):
        with pytest.raises(TypeError):
            mapping["0.weight"] = None


def test_the_mapping_it_was_made_from_may_change():
    positions = {"a": torch.tensor([1, 2], dtype=torch.int32)}
    shapes = {"a": torch.Size([4])}
    mask = SaliencyMask(positions, shapes)
    positions.clear()
    shapes["a"] = torch.Size([9])
    assert selected(mask) == {"a": [1, 2]}
    assert mask.shapes["a"] == (4,)


def test_positions_that_were_written_to_are_noticed(tmp_path, mask, model):
    before = mask.digest
    mask.indices["0.weight"].add_(1)
    for use in (lambda: mask.save(tmp_path / "m"), lambda: mask.check(model), lambda: hash(mask)):
        with pytest.raises(PeckerError, match=r"positions of '0\.weight' .* were written"):
            use()
    assert len(before) == 64
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda mask: pickle.loads(pickle.dumps(mask))]
)
def test_copies(scores, duplicate):
    mask = SaliencyMask.from_scores(scores, 0.3, granularity="block", block_size=9)
    again = duplicate(mask)
    assert again == mask
    assert again.digest == mask.digest
    assert (again.granularity, again.block_size) == ("block", 9)
    assert list(again) == list(mask)
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.indices = {}


def test_a_mask_made_in_inference_mode(scores):
    with torch.inference_mode():
        mask = SaliencyMask.from_scores({name: s.clone() for name, s in scores.items()}, 0.3)
    assert mask == SaliencyMask.from_scores(scores, 0.3)
    assert not any(positions.is_inference() for positions in mask.indices.values())


def test_the_default_device_does_not_matter(tmp_path, scores, model):
    """Someone who builds networks under `with torch.device(...)` makes masks there, too."""

    def make():
        mask = SaliencyMask.from_scores(scores, 0.3)
        mask.save(tmp_path / "mask")
        return [
            mask,
            SaliencyMask.from_scores(scores, 0.3, granularity="block"),
            SaliencyMask.from_scores(scores | {"none": scores["0.bias"][:0]}, 0.3, "per_tensor"),
            SaliencyMask.random(model, 0.3, 0),
            SaliencyMask.full(model),
            SaliencyMask.from_dense(mask.to_dense()),
            SaliencyMask.load(tmp_path / "mask"),
            ~mask,
        ]

    with torch.device("meta"):
        there = make()
    assert there == make()


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        ([1, 1], PeckerError, "must be strictly increasing"),
        ([2, 1], PeckerError, "must be strictly increasing"),
        ([-1, 1], PeckerError, r"must be in 0\.\.3, got -1\.\.1"),
        ([1, 4], PeckerError, r"must be in 0\.\.3, got 1\.\.4"),
        ([[1, 2]], PeckerError, r"one-dimensional and on the CPU, got shape \(1, 2\)"),
        ([], PeckerError, "the mask is empty"),
    ],
)
def test_positions_are_validated(positions, error, message):
    indices = {"a": torch.tensor(positions, dtype=torch.int32)}
    with pytest.raises(error, match=message):
        SaliencyMask(indices, {"a": torch.Size([4])})


def test_constructor_types():
    with pytest.raises(TypeError, match=r"'a' must be an int32 tensor, got torch\.int64"):
        SaliencyMask({"a": torch.tensor([1])}, {"a": torch.Size([4])})
    with pytest.raises(TypeError, match="'a' must be an int32 tensor, got list"):
        SaliencyMask({"a": [1]}, {"a": torch.Size([4])})
    one = torch.tensor([1], dtype=torch.int32)
    with pytest.raises(PeckerError, match="one of them is missing for 'a', 'b'"):
        SaliencyMask({"a": one}, {"b": torch.Size([4])})
    with pytest.raises(PeckerError, match="granularity must be one of"):
        SaliencyMask({"a": one}, {"a": torch.Size([4])}, "row")


# ---- plot


@pytest.mark.parametrize("layers", [1, 30, pytest.param(120, marks=pytest.mark.slow)])
def test_plot(tmp_path, layers):
    scores = {}
    for number in range(layers):
        scores[f"down_blocks.{number}.resnets.0.conv1.weight"] = torch.rand(3, 4)
        scores[f"down_blocks.{number}.resnets.0.conv1.bias"] = torch.rand(3)
    path = tmp_path / "density.png"
    SaliencyMask.from_scores(scores, 0.2).plot(path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width <= 2000  # a page, whatever the number of layers
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 10
    assert os.listdir(tmp_path) == ["density.png"]


def test_plot_adds_up_a_layer(tmp_path):
    from pecker_fast.masks.stats import _by_layer

    rows = [ParameterStats("a.weight", 90, 9), ParameterStats("a.bias", 10, 6)]
    rows += [ParameterStats("scale", 4, 1), ParameterStats("b.a.weight", 5, 5)]
    assert _by_layer(rows) == [
        ParameterStats("a", 100, 15),
        ParameterStats("scale", 4, 1),
        ParameterStats("b.a", 5, 5),
    ]


def test_plot_where_one_cannot(tmp_path, mask):
    with pytest.raises(PeckerError, match="cannot write the plot"):
        mask.plot(tmp_path / "missing" / "density.png")
