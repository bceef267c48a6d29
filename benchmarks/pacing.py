"""How closely an emulated link keeps its pace: `python benchmarks/pacing.py`.

Copies of several lengths, alone and with both directions at once; their times over the times that the link needs.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from engine.device.pacing import PacedLink


def ratios(link, milliseconds, repeats):
    """Each copy's time over what the link needs for its bytes."""
    due_s = milliseconds / 1e3
    src = torch.ones(int(link.bytes_per_s * due_s), dtype=torch.uint8)
    dst = torch.zeros_like(src)
    found = []
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        link.transfer(dst, src, pinned=True)
        found.append((time.perf_counter() - start_s) / due_s)
    return found[1:]  # the first touches new memory


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb-per-s", type=float, default=1.0, help="of each direction")
    parser.add_argument("--repeats", type=int, default=100)
    options = parser.parse_args()
    print(f"{options.gb_per_s:g} GB/s, {options.repeats} copies: time of a copy over what its bytes need")
    print(f"\n{'copy':>8} {'directions':>10} {'median':>8} {'90 % below':>10} {'worst':>8}")
    for milliseconds in (0.1, 0.3, 1, 2, 5, 30):
        for directions in (1, 2):
            links = [PacedLink(name, options.gb_per_s * 1e9) for name in ("h2d", "d2h")[:directions]]
            with ThreadPoolExecutor(directions) as pool:
                done = pool.map(lambda link, ms=milliseconds: ratios(link, ms, options.repeats), links)
                found = [ratio for own in done for ratio in own]
            print(
                f"{milliseconds:5g} ms {directions:10} {statistics.median(found):8.3f} "
                f"{statistics.quantiles(found, n=10)[-1]:10.3f} {max(found):8.3f}"
            )


if __name__ == "__main__":
    main()
