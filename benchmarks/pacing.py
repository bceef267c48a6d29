"""How closely an emulated link keeps its pace: `python benchmarks/pacing.py`.

Copies of several lengths, in one direction and in both at once; their times over the times that the link needs.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from engine.device import EmulatedDevice
from sim.schedule import LaneKind


def ratios(device, direction, bytes_per_s, milliseconds, repeats):
    """Each copy's time over what the link needs for its bytes."""
    due_s = milliseconds / 1e3
    src = torch.ones(int(bytes_per_s * due_s), dtype=torch.uint8)
    dst = torch.zeros_like(src)
    found = []
    with device.open_lane(direction) as lane:
        copy = lane.copy_h2d if direction is LaneKind.H2D else lane.copy_d2h
        for _ in range(repeats + 1):
            start_s = time.perf_counter()
            copy(dst, src)
            found.append((time.perf_counter() - start_s) / due_s)
    return found[1:]  # the first touches new memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb-per-s", type=float, default=1.0, help="of each direction")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error(f"--repeats: {options.repeats} is not enough; give 2 or more")
    rate = options.gb_per_s * 1e9
    print(f"{options.gb_per_s:g} GB/s, {options.repeats} copies: time of a copy over what its bytes need")
    print(f"\n{'copy':>8} {'directions':>10} {'median':>8} {'90 % below':>10} {'worst':>8}")
    with EmulatedDevice(rate, rate, memory_bytes=1 << 20) as device:
        for milliseconds in (0.1, 0.3, 1, 2, 5, 30):
            for directions in ((LaneKind.H2D,), (LaneKind.H2D, LaneKind.D2H)):
                with ThreadPoolExecutor(2) as pool:
                    done = [pool.submit(ratios, device, one, rate, milliseconds, options.repeats) for one in directions]
                    found = [ratio for one in done for ratio in one.result()]
                print(
                    f"{milliseconds:5g} ms {len(directions):10} {statistics.median(found):8.3f} "
                    f"{statistics.quantiles(found, n=10)[-1]:10.3f} {max(found):8.3f}"
                )


if __name__ == "__main__":
    main()
