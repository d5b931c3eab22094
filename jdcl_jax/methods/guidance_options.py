"""What methods' options say of the scale of classifier guidance."""

from collections.abc import Mapping
from typing import Any

from jdcl_jax.diffusion.guidance import SCALES, Scale, make_scale
from jdcl_jax.errors import UserError
from jdcl_jax.methods.method import Setup


def check_guidance(options: Mapping[str, Any]) -> None:
    """Raises `UserError` where `scale` is negative, or `scale_schedule` unknown or without effect."""
    scale, schedule = options["scale"], options["scale_schedule"]
    if scale < 0:
        raise UserError("method.scale is negative and would turn the guidance round; write 0 or more")
    if schedule not in SCALES:
        raise UserError(f"method.scale_schedule is '{schedule}'; write one of: {', '.join(SCALES)}")
    if scale == 0 and schedule != SCALES[0]:
        raise UserError("method.scale_schedule has no effect with method.scale=0; leave it out")


def over_time(setup: Setup, options: Mapping[str, Any]) -> Scale:
    """The share of the scale at every timestep."""
    return make_scale(options["scale_schedule"], setup.schedule.timesteps)
