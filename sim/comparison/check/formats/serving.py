"""What the benchmarks of vLLM and SGLang write. None of them says how the server was set.

Fields: vllm/benchmarks/serve.py and throughput.py of vllm-project/vllm; python/sglang/bench_serving.py and
bench_offline_throughput.py of sgl-project/sglang.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sim.comparison.check.formats.fields import count, number
from sim.comparison.check.measurement import Measurement, RunSetting, Speed

VLLM, SGLANG = "vLLM", "SGLang"


def of_served_requests(record: Mapping[str, Any]) -> Iterator[Measurement]:
    """The whole run, and decode by the time per output token; prefill where no request waits for another."""
    requests = _at_once(record)
    done = max(1, count(record, "completed"))
    prompt = max(1, round(number(record, "total_input_tokens") / done))
    generated = max(1, round(number(record, "total_output_tokens") / done))
    is_sglang = "input_throughput" in record or "sharegpt_output_len" in record
    setting = RunSetting(SGLANG if is_sglang else VLLM, str(record.get("model_id") or record.get("model") or ""))

    def measured(speed: Speed, rate: float) -> Measurement:
        return Measurement(speed, rate, requests, prompt, generated, setting=setting)

    yield measured(Speed.WHOLE, number(record, "output_throughput"))
    token_ms, first_ms = number(record, "mean_tpot_ms", 0.0), number(record, "mean_ttft_ms", 0.0)
    if token_ms > 0 and generated > 1:
        yield measured(Speed.DECODE, requests * 1e3 / token_ms)
    if first_ms > 0 and requests == 1:
        yield measured(Speed.PREFILL, prompt * 1e3 / first_ms)


def _at_once(record: Mapping[str, Any]) -> int:
    """Requests that are under way together: what the client allowed, or all if they came at once, or as they were."""
    if allowed := count(record, "max_concurrency", 0):
        return min(allowed, max(1, count(record, "completed")))
    if math.isinf(number(record, "request_rate", math.inf)):
        return max(1, count(record, "completed"))
    return max(1, count(record, "max_concurrent_requests", 0) or count(record, "concurrency", 1))


def of_offline_run(record: Mapping[str, Any]) -> Iterator[Measurement]:
    """SGLang without a server: all requests at once."""
    requests = max(1, count(record, "successful_requests"))
    prompt, generated = (number(record, f"total_{which}_tokens") for which in ("input", "output"))
    rate = generated / number(record, "total_latency")
    lengths = {"prompt_len": max(1, round(prompt / requests)), "gen_len": max(1, round(generated / requests))}
    yield Measurement(Speed.WHOLE, rate, requests, **lengths, setting=RunSetting(SGLANG))


def of_timed_batch(record: Mapping[str, Any]) -> Iterator[Measurement]:
    """VLLM without a server: tokens of prompts and those generated are counted together."""
    requests = max(1, count(record, "num_requests"))
    tokens = number(record, "total_num_tokens")
    rate, each = tokens / number(record, "elapsed_time"), round(tokens / requests)
    yield Measurement(Speed.WHOLE, rate, requests, tokens_a_request=each, setting=RunSetting(VLLM))
