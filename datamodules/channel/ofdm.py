"""OFDM subcarrier grid, and the speed of light."""

from __future__ import annotations

from dataclasses import dataclass

from datamodules.errors import check_finite, check_positive, check_whole

#: speed of light [m/s]
SPEED_OF_LIGHT = 299_792_458.0


@dataclass(frozen=True)
class OFDM:
    """Subcarrier grid: frequencies k * bandwidth / num_subcarriers above the carrier, k = 0 .. num_subcarriers - 1.

    Args:
        num_subcarriers: Number of subcarriers.
        bandwidth: Bandwidth [Hz].

    Raises:
        InputError: The number of subcarriers is no positive integer, or the bandwidth is not positive and finite.
    """

    num_subcarriers: int = 64
    bandwidth: float = 10e6

    def __post_init__(self) -> None:
        check_whole("OFDM", num_subcarriers=self.num_subcarriers)
        check_finite("OFDM", bandwidth=self.bandwidth)
        check_positive("OFDM", bandwidth=self.bandwidth)

    @property
    def spacing(self) -> float:
        """Subcarrier spacing [Hz]."""
        return self.bandwidth / self.num_subcarriers
