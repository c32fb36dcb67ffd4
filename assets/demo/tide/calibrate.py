"""From what the gauge says to metres above chart datum."""

from __future__ import annotations

from dataclasses import dataclass

SOUND_SPEED = 343.2
"""Metres per second in air at 20 °C; the gauge measures the time of an echo."""


@dataclass(frozen=True)
class Gauge:
    """`height` is the sensor's height above chart datum in metres, `offset` what the last survey found."""

    height: float
    offset: float = 0.0

    def level(self, echo_seconds: float, air_celsius: float = 20.0) -> float:
        """The water level in metres for one echo."""
        # TODO: humidity changes the speed of sound by up to 0.4 %; the harbour sensor does not report it yet
        speed = SOUND_SPEED + 0.606 * (air_celsius - 20.0)
        return self.height - speed * echo_seconds / 2 + self.offset
