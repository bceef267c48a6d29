"""The questions of the golden set: command lines that together touch everything a prediction depends on.

Every schedule, one and several devices, MLA, sliding windows, sinks, quantised weights and caches, dense layers, padded
and unpadded batches, given and planned policies, both optimizers, an emulated machine, and what is infeasible.
"""

from pathlib import Path
from typing import NamedTuple

INPUTS = Path(__file__).with_name("inputs")
EMULATED = str(Path(__file__).resolve().parents[2] / "benchmarks/results/campaign-emulated")


class Case(NamedTuple):
    """One command line of `python -m PACKAGE`, without where its JSON goes."""

    name: str
    package: str
    line: str

    @property
    def arguments(self) -> list[str]:
        return [word.replace("INPUTS", str(INPUTS)).replace("EMULATED", EMULATED) for word in self.line.split()]


def _sim(name: str, line: str) -> Case:
    return Case(name, "sim", line)


COMPARE = (
    _sim("compare-s1", "compare --micro-batch-size 36 --num-micro-batches 14"),
    _sim("compare-unpadded", "compare --unpadded --gen-len 33 --micro-batch-size 16 --num-micro-batches 8"),
    _sim("compare-planned", "compare --gen-len 32 --schedules flexgen-c,accelerate"),
    _sim("compare-planned-size", "compare --hardware gcp-l4 --gen-len 32 --micro-batch-size 24 --schedules cgopipe"),
    _sim(
        "compare-two-devices",
        "compare --model mixtral-8x22b --hardware gcp-2xt4 --workload helm-synthetic --micro-batch-size 16"
        " --num-micro-batches 4",
    ),
    _sim(
        "compare-four-devices",
        "compare --model dbrx --hardware gcp-4xt4 --unpadded --gen-len 12 --micro-batch-size 12 --num-micro-batches 4",
    ),
    _sim(
        "compare-tpu",
        "compare --model qwen3-30b-a3b --hardware v6e --gen-len 24 --micro-batch-size 16 --num-micro-batches 4"
        " --schedules cgopipe,flexgen-c,expert-cache --set device.expert_capacity_ratio=1.25",
    ),
    _sim(
        "compare-tpus",
        "compare --model gpt-oss-120b --hardware tpu-v5e-4 --gen-len 24 --micro-batch-size 16 --num-micro-batches 4"
        " --schedules cgopipe,hybrid",
    ),
    _sim(
        "compare-mla",
        "compare --model deepseek-v2-lite --hardware rtx4090 --prompt-len 300 --gen-len 40 --micro-batch-size 8"
        " --num-micro-batches 4",
    ),
    _sim(
        "compare-mla-infeasible",
        "compare --model deepseek-v3 --hardware h200 --micro-batch-size 8 --num-micro-batches 4",
    ),
    _sim(
        "compare-windows",
        "compare --model gpt-oss-20b --hardware rtx3090 --prompt-len 100 --gen-len 64 --micro-batch-size 10"
        " --num-micro-batches 5",
    ),
    _sim(
        "compare-widths",
        "compare --model gpt-oss-120b --hardware l40s --gen-len 24 --schedules cgopipe,fastdecode,flexgen-c"
        " --policy INPUTS/widths.json",
    ),
    _sim(
        "compare-shares",
        "compare --model qwen3-30b-a3b --hardware rtx4090 --unpadded --gen-len 40 --schedules flexgen"
        " --policy INPUTS/shares.json --set reserve.device=0.9GB",
    ),
    _sim(
        "compare-gpu-attention",
        "compare --model qwen3-30b-a3b --hardware rtx4090 --gen-len 24 --schedules cgopipe --policy INPUTS/shares.json",
    ),
    _sim(
        "compare-pinned",
        "compare --model phi-3.5-moe --hardware a100-40gb --gen-len 20 --policy INPUTS/pinned.json"
        " --schedules cgopipe,flexgen-c,fastdecode",
    ),
    _sim(
        "compare-exact",
        "compare --model olmoe-1b-7b --hardware t4 --gen-len 12 --exact --micro-batch-size 4 --num-micro-batches 3",
    ),
    _sim("compare-one-token", "compare --hardware a10 --gen-len 1 --micro-batch-size 4 --num-micro-batches 4"),
    _sim("compare-one-micro-batch", "compare --hardware h100 --gen-len 30 --micro-batch-size 64 --num-micro-batches 1"),
    _sim(
        "compare-nothing-fits",
        "compare --model qwen3-235b-a22b --hardware a10 --micro-batch-size 8 --num-micro-batches 4",
    ),
    _sim(
        "compare-emulated",
        "compare --model INPUTS/small.json --hardware EMULATED/machine-few-large-experts.toml --prompt-len 30"
        " --gen-len 20 --micro-batch-size 4 --num-micro-batches 4",
    ),
)
PLAN = (
    _sim("plan-s1", "plan --schedules cgopipe,flexgen --gen-len 64 --jobs 1 --quick"),
    _sim(
        "plan-explained",
        "plan --model INPUTS/four-layers.json --prompt-len 60 --gen-len 8 --schedules zero --jobs 1",
    ),
    _sim(
        "plan-latency",
        "plan --model qwen3-30b-a3b --hardware rtx4090 --objective latency --schedules cgopipe --gen-len 32 --jobs 1"
        " --quick",
    ),
    _sim(
        "plan-memory",
        "plan --model INPUTS/four-layers.json --hardware gcp-2xt4 --objective memory --gen-len 16"
        " --schedules cgopipe,flexgen --jobs 1 --quick",
    ),
    _sim(
        "plan-energy",
        "plan --schedules cgopipe --objective energy --price-per-hour 0.35 --price-per-kwh 0.3 --jobs 1 --quick",
    ),
    _sim("plan-hrm", "plan --optimizer hrm --jobs 1 --quick"),
    _sim(
        "plan-widths",
        "plan --model phi-3.5-moe --hardware l4 --weight-bits 4 --kv-bits 8 --schedules fastdecode --gen-len 24"
        " --jobs 1 --quick",
    ),
    _sim(
        "plan-band",
        "plan --model INPUTS/four-layers.json --prompt-len 60 --gen-len 8 --schedules zero,cgopipe --batch 8 --jobs 1"
        " --quick",
    ),
    _sim("plan-infeasible", "plan --model deepseek-v3 --hardware t4 --jobs 1"),
)
CHECK = (
    _sim("check-llama-bench", "check INPUTS/llama-bench.json --model qwen3-30b-a3b --hardware rtx3090 --no-plan"),
    _sim(
        "check-by-hand",
        "check --measured 31 --requests 4 --schedules zero --model INPUTS/four-layers.json --prompt-len 60 --gen-len 8",
    ),
)
SWEEP = (
    _sim(
        "sweep-machine",
        "sweep --axis hardware.link.h2d=8..64x3 --axis schedule=cgopipe,flexgen --micro-batch-size 20"
        " --num-micro-batches 6 --gen-len 16 --jobs 1",
    ),
    _sim(
        "sweep-models",
        "sweep --axis model=mixtral-8x7b,dbrx,gpt-oss-120b --axis policy.experts_on_device=0,0.25"
        " --axis padded=true,false --micro-batch-size 20 --num-micro-batches 6 --gen-len 16"
        " --schedules cgopipe,fastdecode --jobs 1",
    ),
    _sim("sweep-hrm", "sweep --axis gen_len=32,128 --axis hardware.host_memory.bandwidth*=1..4x3 --by hrm --jobs 1"),
)
ROOFLINE = (
    _sim("roofline-s1", "roofline"),
    _sim("roofline-l4", "roofline --hardware gcp-l4 --micro-batch-size 36 --context 700"),
    _sim("roofline-windows", "roofline --model gpt-oss-20b --hardware gcp-2xt4"),
    _sim("roofline-mla", "roofline --model deepseek-v2-lite --hardware rtx4090"),
)
PUBLISHED = (
    Case("published", "validation", "published --jobs 1"),
    Case("published-predict", "validation", "published --jobs 1 --predict INPUTS/rows.csv"),
)
REPLAY = (
    Case("replay-engine", "validation", "replay INPUTS/engine.json.gz --hardware INPUTS/engine.toml"),
    Case("replay-simulated", "validation", "replay INPUTS/simulated.json.gz --hardware gcp-2xt4"),
)
STREAMS = (
    _sim(
        "compare-requests",
        "compare --model INPUTS/four-layers.json --requests 90 --schedules cgopipe,flexgen,zero --unpadded --gen-len 20"
        " --arrivals poisson:40/s --gen-lens lognormal:12,0.5 --seed 2 --ttft 2 --tpot 0.1 --prefill-chunk 256"
        " --micro-batch-size 8 --num-micro-batches 3",
    ),
    _sim(
        "sweep-requests",
        "sweep --model olmoe-1b-7b --hardware t4 --axis requests=10,40 --axis prefill_chunk=256,512 --gen-len 9"
        " --schedules cgopipe,flexgen --micro-batch-size 8 --num-micro-batches 2 --prompt-len 64 --jobs 1",
    ),
)
CASES = (*COMPARE, *PLAN, *CHECK, *SWEEP, *STREAMS, *ROOFLINE, *PUBLISHED, *REPLAY)
