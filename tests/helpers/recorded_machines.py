"""Ten machines as their files and commands describe them: each a folder of files, and what commands print."""

import textwrap
from pathlib import Path

from sim.problem.machine.detect import AskedSystem

GIB = 1024**3
SMI = "nvidia-smi --query-gpu"


def system(root, files, commands=None, cores=16):
    """A machine of these files under `root`, whose commands, by how they begin, print these texts."""
    for path, text in files.items():
        target = Path(root) / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(textwrap.dedent(str(text)).strip() + "\n", encoding="utf-8")

    def run(words):
        line = " ".join(words)
        return next((text for begins, text in (commands or {}).items() if line.startswith(begins)), None)

    return AskedSystem(Path(root), run, lambda: None, lambda: cores)


def host(gib, cpu, flags="fpu avx avx2", available=0.9):
    """/proc of a machine with so much memory."""
    kilobytes = int(gib * 1024**2)
    return {
        "/proc/meminfo": f"MemTotal: {kilobytes} kB\nMemFree: 1 kB\nMemAvailable: {int(kilobytes * available)} kB",
        "/proc/cpuinfo": f"processor : 0\nmodel name : {cpu}\nflags : {flags}",
        "/sys/devices/system/node/node0/meminfo": "",
    }


def on_bus(address, vendor, device, kind="0x030000", speed="16.0 GT/s PCIe", width=16, vram=None):
    """A display or accelerator as sysfs shows it."""
    folder = f"/sys/bus/pci/devices/{address}"
    files = {"vendor": f"0x{vendor}", "device": f"0x{device}", "class": kind, "max_link_speed": speed}
    files |= {"max_link_width": width} | ({} if vram is None else {"mem_info_vram_total": int(vram * GIB)})
    return {f"{folder}/{name}": text for name, text in files.items()}


def module(channel, size="32 GB", speed=5600, kind="DDR5"):
    """A memory module as dmidecode shows it."""
    return (
        f"Handle 0x1, DMI type 17, 92 bytes\nMemory Device\n\tSize: {size}\n\tLocator: DIMM 0\n"
        f"\tBank Locator: {channel}\n\tType: {kind}\n\tSpeed: {speed} MT/s\n\tConfigured Memory Speed: {speed} MT/s\n"
    )


def smi(*rows):
    """What nvidia-smi prints of devices: name, bus, device id, MiB, generation, lanes."""
    return {SMI: "\n".join(", ".join(map(str, row)) for row in rows)}


def laptop(root):
    """No accelerator: an integrated display of Intel's."""
    files = host(15.4, "13th Gen Intel(R) Core(TM) i7-1360P") | on_bus("0000:00:02.0", "8086", "a7a0", speed="Unknown")
    return system(root, files, cores=12)


def desktop_4090(root):
    """One RTX 4090 and the display of the CPU, two channels of DDR5, an NVMe disk."""
    files = host(62.6, "AMD Ryzen 9 7950X 16-Core Processor", "fpu avx avx2 avx512f")
    files |= on_bus("0000:01:00.0", "10de", "2684") | on_bus("0000:0c:00.0", "1002", "164e", vram=0.5)
    files |= {"/sys/block/nvme0n1/size": 3907029168, "/sys/block/nvme0n1/device/model": "Samsung SSD 990 PRO 2TB"}
    files |= {"/sys/devices/system/cpu/cpu0/topology/thread_siblings_list": "0,16"}
    files |= {"/sys/devices/system/cpu/cpu0/cpufreq/base_frequency": 4500000}
    said = smi(("NVIDIA GeForce RTX 4090", "00000000:01:00.0", "0x268410DE", 24564, 4, 16))
    said |= {
        "dmidecode": module("P0 CHANNEL A") + module("P0 CHANNEL B") + module("P0 CHANNEL A", "No Module Installed")
    }
    return system(root, files, said, cores=32)


def unequal(root):
    """An RTX 3090 Ti and a smaller RTX 4060 Ti."""
    files = host(64, "AMD Ryzen 7 5800X 8-Core Processor")
    first = ("NVIDIA GeForce RTX 3090 Ti", "00000000:01:00.0", "0x220310DE", 24564, 4, 16)
    second = ("NVIDIA GeForce RTX 4060 Ti", "00000000:05:00.0", "0x280510DE", 16380, 4, 8)
    return system(root, files, smi(first, second))


def eight_h100(root):
    """Eight H100 in two sockets, with NVLink, and a server's own display."""
    files = host(2015, "Intel(R) Xeon(R) Platinum 8480C", "fpu avx avx2 avx512f")
    files |= {"/sys/devices/system/node/node1/meminfo": ""} | on_bus("0000:03:00.0", "1a03", "2000")
    rows = [("NVIDIA H100 80GB HBM3", f"00000000:{18 + at}:00.0", "0x233010DE", 81559, 5, 16) for at in range(8)]
    said = smi(*rows) | {"nvidia-smi topo": "GPU0 X NV18 NV18\nGPU1 NV18 X NV18"}
    said |= {"dmidecode": "".join(module(f"P{s} CHANNEL {c}", "64 GB", 4800) for s in "01" for c in "ABCDEFGH")}
    return system(root, files, said, cores=112)


def t4_in_a_group(root, version=2):
    """A cloud's T4 in a container of 4 GiB and one and a half cores."""
    files = host(29.4, "Intel(R) Xeon(R) CPU @ 2.00GHz", "fpu avx avx2 avx512f")
    if version == 2:
        group = "/sys/fs/cgroup"
        files |= {"/proc/self/cgroup": "0::/", f"{group}/memory.max": 4 * GIB, f"{group}/memory.current": GIB * 3 // 2}
        files |= {f"{group}/cpu.max": "150000 100000"}
    else:
        files |= {"/proc/self/cgroup": "4:memory:/box\n3:cpu:/box"}
        memory, cpu = "/sys/fs/cgroup/memory/box", "/sys/fs/cgroup/cpu/box"
        files |= {f"{memory}/memory.limit_in_bytes": 4 * GIB, f"{memory}/memory.usage_in_bytes": GIB * 3 // 2}
        files |= {f"{cpu}/cpu.cfs_quota_us": 150000, f"{cpu}/cpu.cfs_period_us": 100000}
    return system(root, files, smi(("Tesla T4", "00000000:00:04.0", "0x1EB810DE", 15360, 3, 16)), cores=8)


def mi300x(root):
    """One MI300X without lspci: known by its id."""
    files = host(1511, "AMD EPYC 9654 96-Core Processor", "fpu avx avx2 avx512f")
    files |= on_bus("0000:05:00.0", "1002", "74a1", "0x120000", "32.0 GT/s PCIe", 16, 191.98)
    return system(root, files, cores=96)


def arc(root):
    """An Intel Arc B580, whose driver shows no memory in sysfs, named by lspci, and an unknown one beside nothing."""
    files = host(31, "Intel(R) Core(TM) Ultra 7 265K")
    files |= on_bus("0000:03:00.0", "8086", "e20b", width=8)
    named = (
        '0000:03:00.0 "VGA compatible controller [0300]" "Intel Corporation [8086]" "Battlemage G21 [Arc B580] [e20b]"'
    )
    return system(root, files, {"lspci": named})


def wsl(root):
    """WSL: the driver alone says what there is."""
    files = host(15.5, "13th Gen Intel(R) Core(TM) i9-13900K") | {
        "/proc/version": "Linux version 6.6-microsoft-standard-WSL2"
    }
    return system(root, files, smi(("NVIDIA GeForce RTX 4080", "00000000:01:00.0", "0x270410DE", 16376, 4, 16)))


def gb10(root):
    """A DGX Spark: ARM, one memory, of which the driver shows none of its own."""
    files = {
        "/proc/meminfo": f"MemTotal: {int(119.7 * 1024**2)} kB\nMemAvailable: {(110 * 1024**2)} kB",
        "/proc/cpuinfo": "processor : 0\nFeatures : fp asimd sve",
    }
    said = smi(("NVIDIA GB10", "0000000F:01:00.0", "0x2E1210DE", "[N/A]", "[N/A]", "[N/A]"))
    return system(root, files, said | {"lscpu": "Architecture: aarch64\nModel name: Cortex-X925"}, cores=20)


def strix_halo(root):
    """Strix Halo: one memory, of which the firmware gave some to the device."""
    files = host(125, "AMD RYZEN AI MAX+ 395 w/ Radeon 8060S", "fpu avx avx2 avx512f")
    files |= on_bus("0000:c4:00.0", "1002", "1586", "0x038000", vram=0.5)
    return system(root, files, cores=16)
