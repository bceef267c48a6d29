"""SGLang: some routed experts of each layer on the device, others paged in from the host as tokens ask for them."""

from sim.planning.export.programs.launch import Launch, cache_differs
from sim.planning.export.programs.served_setup import STAYS, ServedSetup
from sim.planning.export.programs.shell_command import ShellCommand, name_of_width


def paging_server(setting: ServedSetup) -> Launch:
    """`sglang.launch_server` with paged experts."""
    resident = min(setting.resident_experts)
    options = {
        **server_options(setting),
        "--enable-paged-experts": True,
        "--paged-experts-num-resident": resident,
    }
    notes = server_notes(setting)
    if resident != max(setting.resident_experts):
        notes.append(f"Every layer has {resident} experts on the device, where the plan has one more in some")
    return Launch(ShellCommand("python -m sglang.launch_server", options), notes=tuple(notes))


def server_options(setting: ServedSetup) -> dict[str, object]:
    """What every SGLang server is told."""
    cache, _ = name_of_width("sglang-cache", setting.cache_bits)
    return {
        "--model-path": setting.checkpoint,
        "--max-running-requests": setting.requests,
        "--context-length": setting.tokens_of_a_request,
        "--max-total-tokens": setting.tokens_of_a_request * setting.requests,
        "--chunked-prefill-size": setting.prompt_tokens,
        "--max-prefill-tokens": setting.prompt_tokens,
        "--mem-fraction-static": setting.share_of_device(3, STAYS),
        "--kv-cache-dtype": cache,
        "--tp-size": setting.num_devices,
    }


def server_notes(setting: ServedSetup) -> list[str]:
    """What of the plan no such option says."""
    cache, bits = name_of_width("sglang-cache", setting.cache_bits)
    notes = [f"Weights are as {setting.checkpoint} stores them: the plan has experts of {setting.expert_bits:g} bits"]
    if bits != setting.cache_bits:
        notes.append(cache_differs(cache, bits, setting.cache_bits))
    return notes
