"""What devices can do at most: dense peaks as their maker states them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """TFLOP/s without sparsity.

    `bf16`: of the tensor cores; datasheets often show twice as much, with sparsity. `fp32`: true float32, in which
    torch computes unless told to use TF32; None where it was not looked up.
    """

    source: str
    bf16: float
    fp32: float | None


# By words of the name that CUDA gives the device, those with more words first. NVIDIA prints bf16 with sparsity; half
# of that is here. The float32 of H100 SXM, A100 and L4 were compared with a copy of Google Cloud's table of its GPUs,
# that of L40S and the bf16 of L4 (half of its int8) with sellers' tables. No second source was found for the float32 of
# H100 NVL, nor for A10: nothing stands here of them.
PEAKS: dict[str, Peak] = {
    "H100 NVL": Peak("H100 data sheet, NVL: 1,671 TFLOPS with sparsity", 835.5, None),
    "H100 PCIe": Peak("H100 data sheet, PCIe: 1,513 TFLOPS with sparsity", 756.0, 51.0),
    "H100": Peak("H100 SXM5, data sheet: 1,979 TFLOPS with sparsity", 989.4, 67.0),
    "H200": Peak("H200 SXM, data sheet: 1,979 TFLOPS with sparsity", 989.4, 67.0),
    "B200": Peak("HGX B200, data sheet: 4.5 PFLOPS with sparsity", 2250.0, None),
    "A100": Peak("A100, data sheet: 312 TFLOPS", 312.0, 19.5),
    "L40S": Peak("L40S, data sheet: 362.05 TFLOPS, 733 with sparsity", 362.05, 91.6),
    "L4": Peak("L4, data sheet: 242 TFLOPS with sparsity", 121.0, 30.3),
    "RTX 4090": Peak("Ada architecture white paper: 165.2 TFLOPS with float32 sums", 165.2, None),
}


def peak_of(device: torch.device, precision: str) -> float | None:
    """The device's peak in FLOP/s at a precision of training.precision; None if it is not known, as of a CPU."""
    return peak_by_name(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_by_name(name: str, precision: str) -> float | None:
    """As :func:`peak_of`, by the name that CUDA gives, such as "NVIDIA A100-SXM4-80GB"."""
    peak = find_peak(name)
    if peak is None or precision == "fp64":  # what nobody trains in
        return None
    found = getattr(peak, precision)
    return None if found is None else 1e12 * found


def find_peak(name: str) -> Peak | None:
    """A device's peaks by such a name; None if they are not known, as those of a part of a device (MIG) are not."""
    words = set(name.replace("-", " ").split())
    return None if "MIG" in words else next((PEAKS[part] for part in PEAKS if words.issuperset(part.split())), None)
