"""The noise schedule that a scheduler_config.json describes, as diffusers builds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from pecker_fast.errors import PeckerError
from pecker_fast.files import few, read_json, shown
from pecker_fast.models.weights import check_config, first_line

__all__ = ["SCHEDULERS", "Scheduler", "is_flow", "read_schedule", "scheduler_of"]

Scheduler: TypeAlias = "DDPMScheduler | FlowMatchEulerDiscreteScheduler"

FLOW = "FlowMatchEulerDiscreteScheduler"
_SOLVER = "DPMSolverMultistepScheduler"  # which SANA comes with, set to a flow

SCHEDULERS = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep",
        "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSDE", "DPMSolverSinglestep",
        "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
        "KDPM2Discrete", "LCM", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep",
    )
)  # fmt: skip
"""Of diffusers: those that step through DDPM's noise process, however they step."""

_OF_NOISE: Mapping[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "use_flow_sigmas": (None, False),
    "predict_epsilon": (None, True),  # of old files, before prediction_type
}
_OF_A_FLOW: Mapping[str, tuple[Any, ...]] = {
    "beta_start": (None,),  # what tells the two kinds apart
    "time_shift_type": ("exponential",),
    **dict.fromkeys(("invert_sigmas", "use_karras_sigmas"), (None, False)),
    **dict.fromkeys(("use_exponential_sigmas", "use_beta_sigmas"), (None, False)),
    "shift_terminal": (None,),
}
"""Entries that would make another process of it, with the values that do not."""


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the configuration of a scheduler is that of a rectified flow."""
    return config.get("_class_name") == FLOW


def read_schedule(file: Path) -> dict[str, Any]:
    """Read the noise schedule of a scheduler_config.json.

    Returns:
        The configuration; of SANA's solver that of the flow that it steps along.

    Raises:
        PeckerError: it cannot be read, or is of another process.
    """
    config = read_json(file)
    if isinstance(config, dict) and config.get("use_flow_sigmas") is True:
        steps, shift = config.get("num_train_timesteps"), config.get("flow_shift", 1.0)
        dynamic = config.get("use_dynamic_shifting") not in (None, False)
        if config.get("_class_name") != _SOLVER or dynamic:
            raise PeckerError(
                f"{file}: 'use_flow_sigmas' of a {shown(config.get('_class_name'))} is not "
                f"supported; expected {FLOW}, or {_SOLVER} as SANA has it"
            )
        config = {"_class_name": FLOW, "num_train_timesteps": steps, "shift": shift}
    scheduler_of(config, file)
    return dict(config)


def scheduler_of(config: Any, source: object) -> Scheduler:
    """Build the scheduler of a configuration, `DDPMScheduler` or that of a flow.

    Args:
        config: of any scheduler that steps through either process.
        source: names it in errors.

    Raises:
        PeckerError: it is of another process, or of none.
    """
    name = config.get("_class_name") if isinstance(config, dict) else None
    flow = name == FLOW
    kind: Any = FlowMatchEulerDiscreteScheduler if flow else DDPMScheduler
    check_config(config, kind.__init__, source)
    if not flow and (not isinstance(name, str) or name not in SCHEDULERS):
        raise PeckerError(
            f"{source}: a {shown(name)} adds noise in another way than DDPM, or is not known here; "
            f"supported are {few(sorted({FLOW, *SCHEDULERS}), 6)}"
        )
    needed = ["num_train_timesteps", *(() if flow else ("beta_start", "beta_end", "beta_schedule"))]
    if missing := [entry for entry in needed if config.get(entry) is None]:
        raise PeckerError(f"{source}: {few(missing)} is missing")
    for entry, allowed in (_OF_A_FLOW if flow else _OF_NOISE).items():
        if entry in config and config[entry] not in allowed:
            raise PeckerError(
                f"{source}: {shown(entry)} must be {few(map(str, allowed))}, got "
                f"{shown(config[entry])}"
            )
    if str(config.get("variance_type")).startswith("learned"):
        raise PeckerError(
            f"{source}: 'variance_type' {config['variance_type']!r} is not supported: the network "
            "would have to predict the variance too"
        )
    try:
        scheduler: Scheduler = kind.from_config(config)
        if config.get("use_dynamic_shifting"):
            settings = scheduler.config
            length = settings.max_image_seq_len - settings.base_image_seq_len
            _ = (settings.max_shift - settings.base_shift) / length
        noise = scheduler.sigmas.flip(0) if flow else 1 - scheduler.alphas_cumprod
        inside = bool(((noise > 0) & (noise <= 1)).all()) and bool((noise.diff() >= 0).all())
        if not inside or len(noise) != scheduler.config.num_train_timesteps:
            raise ValueError("noise must rise inside (0, 1] in 'num_train_timesteps'")
    except Exception as error:  # diffusers checks little itself
        raise PeckerError(f"{source}: describes no schedule ({first_line(error)})") from error
    return scheduler
