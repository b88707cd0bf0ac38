"""What a mask takes: models, mappings of tensors and positions, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pecker_fast.errors import PeckerError
from pecker_fast.files import few
from pecker_fast.masks.select import check_numel

__all__ = [
    "Model",
    "check_fit",
    "checked_positions",
    "few",
    "maskable_shapes",
    "named_tensors",
    "parameters_of",
    "trainable_parameters",
]

Model: TypeAlias = nn.Module | Mapping[str, Tensor]


def checked_positions(name: str, positions: Tensor, shape: torch.Size) -> Tensor:
    """The positions, contiguous and able to count their versions, after checking them."""
    if not isinstance(name, str):
        raise TypeError(f"parameter names must be strings, got {type(name).__name__}")
    check_numel(name, shape)
    if not isinstance(positions, Tensor) or positions.dtype != torch.int32:
        found = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
        raise TypeError(f"the positions of {name!r} must be an int32 tensor, got {found}")
    if positions.dim() != 1 or positions.device.type != "cpu":
        raise PeckerError(
            f"the positions of {name!r} must be one-dimensional and on the CPU, got shape "
            f"{tuple(positions.shape)} on {positions.device}"
        )
    if positions.is_inference():  # it has no version counter
        with torch.inference_mode(False):
            positions = positions.clone()
    positions = positions.contiguous()
    if positions.numel() and (positions[0] < 0 or positions[-1] >= shape.numel()):
        raise PeckerError(
            f"the positions of {name!r} must be in 0..{shape.numel() - 1}, got "
            f"{int(positions[0])}..{int(positions[-1])}"
        )
    if not bool((positions[1:] > positions[:-1]).all()):
        raise PeckerError(f"the positions of {name!r} must be strictly increasing")
    return positions


def named_tensors(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The mapping as a dictionary, if it maps names to tensors and holds at least one entry."""
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"{what} must be a mapping from parameter names to tensors, "
            f"got {type(tensors).__name__}"
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"{what} must map parameter names to tensors, got "
                f"{type(name).__name__} -> {type(tensor).__name__}"
            )
    if not any(tensor.numel() for tensor in tensors.values()):
        raise PeckerError(f"{what} must hold at least one entry, got {len(tensors)} parameters")
    return dict(tensors)


def parameters_of(model: Model) -> dict[str, Tensor]:
    """All parameters of a module, frozen ones too, or the tensors of a mapping, by name."""
    if isinstance(model, nn.Module):
        return dict(model.named_parameters())
    if isinstance(model, Mapping):
        return named_tensors(model, "model")
    raise TypeError(
        "model must be a torch.nn.Module or a mapping from names to tensors, "
        f"got {type(model).__name__}"
    )


def trainable_parameters(model: Model) -> dict[str, Tensor]:
    """The module's parameters with requires_grad (maybe none); all tensors of a mapping."""
    parameters = parameters_of(model)
    if isinstance(model, nn.Module):
        return {name: p for name, p in parameters.items() if p.requires_grad}
    return parameters


def maskable_shapes(model: Model) -> dict[str, torch.Size]:
    """The shapes of `trainable_parameters`.

    Raises:
        PeckerError: there are none.
    """
    parameters = trainable_parameters(model)
    if not parameters:
        raise PeckerError(
            f"{type(model).__name__} has no trainable parameter; call requires_grad_(True) on "
            "the parameters the mask is for"
        )
    return {name: param.shape for name, param in parameters.items()}


def check_fit(shapes: Mapping[str, torch.Size], model: Model) -> None:
    """Refuse a model whose trainable parameters are not those of a mask.

    Raises:
        PeckerError: see `SaliencyMask.check`.
    """
    parameters, trainable = parameters_of(model), trainable_parameters(model)
    problems = []
    if unknown := [name for name in shapes if name not in parameters]:
        problems.append(f"the model has no {few(unknown)}")
    if missing := [name for name in trainable if name not in shapes]:
        problems.append(f"the mask has no {few(missing)}")
    problems += [
        f"{name!r} has shape {tuple(shape)} in the mask and {tuple(parameters[name].shape)} in the "
        "model"
        for name, shape in shapes.items()
        if name in parameters and parameters[name].shape != shape
    ][:3]
    if problems:
        raise PeckerError(
            f"the mask does not fit the model: {'; '.join(problems)}. "
            "Make the mask from this model, or load the model it was made from"
        )
