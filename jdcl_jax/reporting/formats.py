"""Numbers in the units and lengths that a person reads at a glance."""

import math

_SI = ("", "k", "M", "G", "T", "P", "E", "Z")


def number(value: float | None, digits: int = 4, missing: str = "-") -> str:
    """`value` to `digits` significant digits, or `missing` if it is not finite.

    From 100,000 on and below 0.0001 it is written as 1.23e+05.
    """
    if value is None or not math.isfinite(value):
        return missing
    if value == 0:
        return "0"
    scientific = f"{value:.{digits - 1}e}"
    exponent = int(scientific.partition("e")[2])  # after rounding: 9.9999 has that of 10.00
    if not -5 < exponent < 5:
        return scientific
    return f"{value:.{max(digits - 1 - exponent, 0)}f}"


def error(value: float, of: float, digits: int = 4) -> str:
    """An error to as many decimals as `number` gives to the value that it belongs to."""
    text = number(of, digits)
    decimals = len(text.partition(".")[2])
    if "e" in text or not math.isfinite(value) or 0 < value < 0.5 * 10**-decimals:
        return number(value, digits=2)
    return f"{value:.{decimals}f}"


def count(value: float | None, missing: str = "-") -> str:
    """A whole number with thousands separated: 28,800."""
    if value is None or not math.isfinite(value):
        return missing
    return f"{round(value):,}"


def duration(seconds: float | None, missing: str = "-") -> str:
    """Seconds as 3.2 s, 42 s, 3 min 20 s, 2 h 05 min or 1 d 03 h."""
    if seconds is None or not math.isfinite(seconds):
        return missing
    if seconds == 0:
        return "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def flops(value: float | None, missing: str = "-") -> str:
    """A count of floating-point operations with an SI prefix: 1.20 TFLOP (a count, not a rate)."""
    if value is None or not math.isfinite(value):
        return missing
    power = 0
    while abs(value) >= 999.5 and power < len(_SI) - 1:
        value /= 1000
        power += 1
    return f"{number(value, digits=3, missing=missing)} {_SI[power]}FLOP"
