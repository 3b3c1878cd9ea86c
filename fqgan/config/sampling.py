"""How a generator's codes are drawn."""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from fqgan.base.errors import UserError, brief
from fqgan.base.schema import plain

Schedule = Literal["constant", "linear", "power-cosine"]
"""How guidance grows over the positions."""
_SCHEDULES = "constant, linear or power-cosine"
_KINDS: dict[str, tuple[type, str]] = {"top_k": (numbers.Integral, "whole numbers"), "cfg_schedule": (str, _SCHEDULES)}
_MOST = 1e6  # of scales, powers and temperatures: far above, products of float32 are infinite


@dataclass(frozen=True)
class SamplingConfig:
    """How codes are drawn. A tuple has one value for all factors, or one for each."""

    CHANGEABLE = True

    cfg_scale: tuple[float, ...] = (2.0,)
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional) logits; 1: none, at most
    1,000,000. Without a class to guide towards, the default counts as 1."""
    cfg_schedule: tuple[Schedule, ...] = ("constant",)
    """How guidance grows over the positions: not at all, linearly from 1 to the scale (MUSE, Chang et al. 2023), or as
    1 + (scale - 1) * (1 - cos(pi * progress^power)) / 2 (MDTv2, Gao et al. 2023)."""
    cfg_power: tuple[float, ...] = (1.0,)
    """Power of the power-cosine schedule; with a larger one guidance sets in later."""
    cfg_interval: tuple[float, ...] = (0.0, 1.0)
    """Interval of positions in which guidance acts, as two fractions of all positions, or two for each factor; outside
    of it the scale is 1 (Kynkäänniemi et al. 2024, of diffusion models)."""
    temperature: tuple[float, ...] = (1.0,)
    """Number by which the logits are divided; below 1e-20 the most probable code is taken (greedy)."""
    top_k: tuple[int, ...] = (0,)
    """Draw from this many of the most probable codes only; 0: draw from all codes."""
    top_p: tuple[float, ...] = (1.0,)
    """Draw from the smallest set of most probable codes whose probabilities add up to at least this sum; 1: draw from
    all codes."""

    @property
    def values(self) -> dict[str, Any]:
        """How codes are drawn, by name; of settings that hold more, too."""
        return {each.name: getattr(self, each.name) for each in fields(SamplingConfig)}

    @classmethod
    def of(cls, **values: Any) -> SamplingConfig:
        """From plain numbers or any sequences of them, also numpy's and torch's. `UserError` for unknown names."""
        names = {each.name for each in fields(cls)}
        for name in values.keys() - names:
            raise UserError(f"unknown setting {name!r}: there are {', '.join(sorted(names))}")
        return cls(**{name: plain(value, name in cls._tuples()) for name, value in values.items()})

    @classmethod
    def from_older(cls, values: dict[str, Any]) -> dict[str, Any]:
        """`schema`'s reading of files in which one schedule and one power were for all factors."""
        single = [name for name in ("cfg_schedule", "cfg_power") if not isinstance(values.get(name, []), list | tuple)]
        return {**values, **{name: [values[name]] for name in single}}

    @classmethod
    def _tuples(cls) -> set[str]:
        return {each.name for each in fields(SamplingConfig) if str(each.type).startswith("tuple")}

    def resolved(self, conditional: bool) -> SamplingConfig:
        """As it is for images of classes. For images of none the default guidance becomes none, and any other raises
        `UserError`."""
        if conditional:
            return self
        if self.cfg_scale != SamplingConfig.cfg_scale and any(scale != 1 for scale in self.cfg_scale):
            raise UserError("cfg_scale guides towards a class, and there is none here: leave it out")
        return replace(self, cfg_scale=(1.0,))

    def each(self, name: str, factors: int) -> tuple[Any, ...]:
        """The values of a field, one for each factor."""
        values = getattr(self, name)
        return values * factors if len(values) == 1 else values

    def intervals(self, factors: int) -> list[tuple[float, float]]:
        """`cfg_interval` of each factor."""
        bounds = self.cfg_interval * (1 if len(self.cfg_interval) > 2 else factors)
        return list(zip(bounds[::2], bounds[1::2], strict=False))

    def check(self, codebook_sizes: tuple[int, ...]) -> None:
        """`UserError` for values that are impossible for these codebooks, or of another type."""
        k = len(codebook_sizes)
        for name in sorted(self._tuples()):
            kind, word = _KINDS.get(name, (numbers.Real, "numbers"))
            values = getattr(self, name)
            if not isinstance(values, tuple) or any(isinstance(v, bool) or not isinstance(v, kind) for v in values):
                raise UserError(f"{name} must be {word}, got {brief(values)}")
        for schedule in self.cfg_schedule:
            if schedule not in get_args(Schedule):
                raise UserError(f"cfg_schedule must be {_SCHEDULES}, got {brief(schedule)}")
        for name in sorted(self._tuples() - {"cfg_interval"}):
            values = getattr(self, name)
            if len(values) not in (1, k):
                raise UserError(f"{name} needs one value, or one for each of the {k} factors, got {len(values)}")
        for name, low, high in (
            ("cfg_scale", 0, _MOST),
            ("cfg_power", 0, _MOST),
            ("temperature", 0, _MOST),
            ("top_p", 0, 1),
        ):
            for value in getattr(self, name):
                if not low <= value <= high or (name == "top_p" and not value):
                    rule = "above 0 and at most 1" if name == "top_p" else f"at least 0 and at most {high:,.0f}"
                    raise UserError(f"{name} must be {rule}, got {brief(value)}")
        for i, size in enumerate(codebook_sizes):
            top = self.each("top_k", k)[i]
            if not 0 <= top <= size:
                raise UserError(f"top_k {brief(top)} is impossible: factor {i} has {size} codes (0: all of them)")
        bounds = self.cfg_interval
        if len(bounds) not in (2, 2 * k) or any(not 0 <= a <= b <= 1 for a, b in self.intervals(k)):
            rule = "two fractions 0 <= from <= to <= 1" + (f", or two for each of the {k} factors" if k > 1 else "")
            raise UserError(f"cfg_interval must be {rule}, got {brief(bounds)}")
