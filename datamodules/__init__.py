"""Channels from rays to batches.

Axis letters, used in every docstring and einops pattern: `B` batch, `U` users, `P` paths, `R` receive antennas (UE),
`T` transmit antennas (BS), `K` subcarriers, `L` delay taps, `N` time snapshots, `S` base stations, `Q` beams,
`D` features, `A` domain axes. SI units and radians throughout; a name carries a unit only where it is not SI.
"""

import lazy_loader

# names are in __init__.pyi, and imported on first use: `lightning --help` must not wait for torch or a ray tracer
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
