"""KTransformers: routed experts on the host beside those of each layer that are on the device, through its SGLang.

Prompts are computed where the experts are: it takes them to the device for weights of its own formats FP8 and RAWINT4
only (`--kt-gpu-prefill-token-threshold`, kt-kernel's documentation), which no width says.
"""

from sim.planning.export.programs.launch import Launch
from sim.planning.export.programs.served_setup import ServedSetup
from sim.planning.export.programs.sglang import server_notes, server_options
from sim.planning.export.programs.shell_command import ShellCommand, ShellExpression, name_of_width

PHYSICAL_CORES = ShellExpression("lscpu -p=Core,Socket | grep -v '^#' | sort -u | wc -l")
MEMORY_NODES = ShellExpression("ls -d /sys/devices/system/node/node[0-9]* | wc -l")


def expert_server(setting: ServedSetup) -> Launch:
    """`sglang.launch_server` with the options that KTransformers adds to it."""
    method, bits = name_of_width("kt-method", setting.expert_bits)
    options = {
        **server_options(setting),
        "--kt-weight-path": setting.checkpoint,
        "--kt-method": method,
        "--kt-cpuinfer": PHYSICAL_CORES,
        "--kt-threadpool-count": MEMORY_NODES,
        **_experts_on_device(setting),
        "--kt-max-deferred-experts-per-token": setting.setup.policy.defer_experts or None,
    }
    notes = [
        *server_notes(setting),
        f"For experts of {setting.expert_bits:g} bits on the host, {method} has {bits:g}; --kt-weight-path takes "
        "weights that were converted for it",
    ]
    known = "python -m sglang.launch_server (sglang-kt)"
    return Launch(ShellCommand("python -m sglang.launch_server", options, known_as=known), notes=tuple(notes))


def _experts_on_device(setting: ServedSetup) -> dict[str, object]:
    """So many of each layer; where layers differ, the share of all."""
    counts = setting.resident_experts
    if len(set(counts)) == 1:
        return {"--kt-num-gpu-experts": counts[0]}
    model = setting.setup.problem.model
    total = sum(model.layers[layer].num_experts for layer in setting.expert_layers)
    ratio = f"{(sum(counts) + 0.5) / total:.6f}"  # it is rounded down to whole experts
    return {"--kt-gpu-experts-ratio": ratio, "--kt-expert-placement-strategy": "uniform"}
