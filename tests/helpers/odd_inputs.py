"""Odd files and command lines: right ones with a few mistakes, of the kinds that people and broken programs make.

`odd_input(random)` makes one, `Ran.of` runs it in this process and holds it to the law: a right answer, or one line and
exit code 2; never a stack trace, more work than anything useful takes, half a file, or a number that is none.
"""

import contextlib
import copy
import csv
import io
import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tomli_w

from sim.cost import Setup
from sim.problem import Hardware, Model, Policy, Problem, Workload
from sim.schedule import by_name
from sim.simulation import compile_once, record
from traces.files import write_trace
from validation.console import main

MOST_CALLS = 60_000_000
"""Calls of functions that one command may make: some more than with as many micro-batches as a step may have."""

LONGEST_LINE = 400

NO_NUMBER = re.compile(r"(?<![\w\[./-])-?(nan|inf|infinity)(?![\w\]./-])(?! is not)", re.IGNORECASE)
"""What is no number, but where it is said that it is none."""

MODEL = {
    "model_type": "mixtral",
    "vocab_size": 320,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
COUNTS = {"tokens": 4, "used": [2, 2, 2, 2]}
HISTOGRAM = {
    "schema": 1,
    "model": "tiny",
    "layers": [{"top_k": 2, "prefill": COUNTS, "decode": COUNTS}, {"top_k": 2, "prefill": COUNTS, "decode": COUNTS}],
}
POLICY = {"schedule": "cgopipe", "batch_size": 4, "micro_batch_size": 2, "experts_on_device": 0.5, "pages": 2}
POLICY |= {"attention": "cpu", "kv_on_device": 0, "pin_weights": 0.5, "weight_bits": 8, "kv_bits": 16}
SPLIT = {"schedule": "hybrid", "batch_size": 4, "micro_batch_size": 2, "experts_on_device": 0.25, "groups": 1}
SPLIT |= {"experts_on_host": 0.25, "experts_fetched": 0.25, "deal_experts": True, "prefill_experts": "gpu"}
WORKLOAD = {"prompt_tokens": [5, 12, 7], "gen_len": 3, "padded": False, "description": "some", "basis": "assumed"}
REQUESTS = [{"prompt_tokens": 5, "max_tokens": 3, "arrival_s": 0.5}, {"prompt_tokens": 9, "generated_tokens": 2}]
REQUESTS += [{"prompt": "some words of a text"}, {"body": {"messages": [{"content": "as sent"}], "max_tokens": 4}}]
LINES = [{"prompt_tokens": 12}, {"prompt_token_ids": [1, 2, 3]}, {"prompt": "some words of a text"}]
ROWS = [["arrival_s", "prompt_tokens", "generated_tokens"], ["0.5", "7", "3"], ["1.5", "12", "2"]]

PROBLEM = "--model {model} --hardware {machine} --workload {workload} --gen-len 3 --jobs 1"
SIZES = "--micro-batch-size 2 --num-micro-batches 2"
LINES_OF_COMMANDS = (
    f"compare {PROBLEM} {SIZES} --schedules cgopipe,flexgen --json out.json",
    f"compare {PROBLEM} --schedules cgopipe --policy {{policy}} --unpadded --json out.json",
    f"compare {PROBLEM} --schedules hybrid --policy {{split}} --routing {{routing}} --json -",
    f"compare {PROBLEM} {SIZES} --schedules zero,expert-cache --workload {{lines}} --exact",
    f"compare {PROBLEM} {SIZES} --schedules cgopipe --requests {{requests}} --prefill-chunk 8 --json out.json",
    f"compare {PROBLEM} {SIZES} --schedules hybrid --requests {{rows}} --prefill-chunk 8 --ttft 2 --tpot 0.5",
    f"compare {PROBLEM} {SIZES} --schedules cgopipe --trace traces --routing zipf:1.1",
    f"plan {PROBLEM} --schedules zero --batch 2 --quick --out policy.json",
    f"sweep {PROBLEM} {SIZES} --schedules flexgen --axis hardware.link.h2d=8,12 --axis padded=true --out rows.jsonl",
    f"sweep {PROBLEM} --policy {{policy}} --axis policy.pin_weights=0..1x2 --axis routing=uniform,zipf:1",
    f"sweep {PROBLEM} --by hrm --axis prompt_len=8,16",
    "roofline --model {model} --hardware {machine} --context 64 --micro-batch-size 8 --json -",
    "list {machine} --json out.json",
    "list {machine}",
    "trace summary {trace} --json -",
    "trace critical-path {trace} --top 3",
    "trace diff {trace} {trace}",
    "replay {trace} --hardware {machine} --json out.json",
    "published --predict {published} --jobs 1 --json -",
)

DEEP = 3000
VALUES = (
    None, True, -1, 0, 1, 1.5, -0.0, 2**31, 2**63, 10**18, 10**30, 1e308, -1e308, 5e-324, 1e-283, float("inf"),
    float("-inf"), float("nan"), "", " ", "x", "a" * 5000, "\0", "[/red]", "[bold]", "\N{SNOWMAN}", "\ud800", "2",
    "cgopipe", "zero", "-", "../..", "/", [], [[]], {}, {"value": 1}, [1, 2], ["a"], [None], {"a": {"b": []}},
)  # fmt: skip
WORDS = (
    "", "-1", "0", "1", "1.5", "1e308", "inf", "nan", "9" * 400, "x", "a" * 5000, "\0", "[/red]", "\N{SNOWMAN}", "²",
    "/", ".", "..", "-", "--", "/dev/null", "no/such/place", "~nobody/x.toml", "out.json", "poisson:0/s", "zipf:99",
    "lognormal:1,9", "lognormal:", "1,2,,3", "=", "x=1", "gen_len=1..2x999999999", "hardware.link.h2d=nan", ",",
    "a=b=c",
    "policy.pages=0,none", "policy.batch_size=1e9", "label:gen_len=2", "hardware.link.h2d[parsecs]=1", "padded=maybe",
)  # fmt: skip
OPTIONS = (
    "--exact", "--unpadded", "--quick", "--json", "--jobs", "--requests", "--arrivals", "--gen-lens", "--prompt-lens",
    "--seed", "--preempt", "--priority", "--ttft", "--micro-batch-size", "--policy", "--routing", "--objective",
    "--weight-bits", "--kv-bits", "--optimizer", "--batch", "--baseline", "--attention-on-device", "--top", "--resume",
    "--axis", "--prompt-len", "--gen-len", "--schedules", "--map", "--rows", "--help", "--frobnicate",
)  # fmt: skip


@cache
def right_files():
    """The content of each kind of file, as text."""
    machine = Hardware.load("gcp-t4").to_dict() | {"name": "tiny", "description": "a small machine"}
    published = Path(__file__).parents[1] / "golden" / "inputs" / "rows.csv"
    table = io.StringIO()
    csv.writer(table).writerows(ROWS)
    return {
        "model": ("config.json", MODEL),
        "machine": ("machine.toml", machine),
        "workload": ("workload.toml", WORKLOAD),
        "policy": ("policy.json", POLICY),
        "split": ("split.json", SPLIT),
        "routing": ("routing.json", HISTOGRAM),
        "lines": ("lines.jsonl", LINES),
        "requests": ("requests.jsonl", REQUESTS),
        "rows": ("rows.csv", table.getvalue()),
        "published": ("published.csv", published.read_text(encoding="utf-8")),
        "trace": ("trace.json", _trace()),
    }


def _trace():
    model = Model.of_config(MODEL, "tiny", "tiny")
    problem = Problem(model, Hardware.load("gcp-t4"), Workload.fixed(8, 2))
    schedule = by_name("cgopipe")
    path = Path(__file__).with_name(".trace.json")
    try:
        write_trace(record(Setup(problem, schedule, Policy.usual(schedule, 2, 1)), {"model_config": MODEL}), path)
        return json.loads(path.read_text(encoding="utf-8"))
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class OddInput:
    """Files by name, and the words of a command."""

    files: dict
    words: list

    def __repr__(self):
        return f"{' '.join(map(repr, self.words))} with {', '.join(self.files)}"


def odd_input(random):
    """A command whose files or words have a mistake or two; now and then none."""
    line = random.choice(LINES_OF_COMMANDS)
    kinds = [kind for kind in right_files() if f"{{{kind}}}" in line]
    in_words = random.random() < 0.3 or not kinds
    spoilt = (
        set() if in_words else {random.choice(kinds)} | ({random.choice(kinds)} if random.random() < 0.2 else set())
    )
    files = {}
    for kind in kinds:
        name, content = right_files()[kind]
        files[name] = _odd_file(random, name, content) if kind in spoilt else written(name, content).encode()
    words = [word.format(**{kind: right_files()[kind][0] for kind in kinds}) for word in line.split()]
    return OddInput(files, _odd_words(random, words) if in_words else words)


def _odd_words(random, words):
    for _ in range(random.choice([1, 1, 2])):
        at = random.randrange(1, len(words) + 1)
        change = random.randrange(4)
        if change == 0 and at < len(words):
            words[at] = random.choice(WORDS)
        elif change == 1:
            words[at:at] = [random.choice(OPTIONS), random.choice(WORDS)]
        elif change == 2 and at < len(words):
            del words[at]
        else:
            words[at:at] = [random.choice(OPTIONS)]
    return words


def _odd_file(random, name, content):
    if not isinstance(content, str) and random.random() < 0.75:
        content = copy.deepcopy(content)
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            content = _odd_value(random, content)
        return written(name, content).encode("utf-8", errors="surrogatepass")
    return _odd_bytes(random, written(name, content))


def _odd_value(random, content):
    """The same with something else in one place."""
    place, path = content, None
    while isinstance(place, dict | list) and place and (path is None or random.random() < 0.75):
        key = random.choice(list(place)) if isinstance(place, dict) else random.randrange(len(place))
        path, place = (place, key), place[key]
    if path is None:
        return copy.deepcopy(random.choice(VALUES))
    (holder, key), change = path, random.randrange(5)
    if change == 0 and isinstance(holder, dict):
        del holder[key]
    elif change == 1 and isinstance(holder, dict):
        holder[random.choice([f"{key}s", "extends", "", "a.b"])] = holder.pop(key)
    elif change == 2 and isinstance(place, int | float) and not isinstance(place, bool):
        holder[key] = place * random.choice([-1, 0, 0.5, 2, 1000, 10**6, 10**12, 1e-12])
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))
    return content


def _odd_bytes(random, text):
    content, at = text.encode(), random.randrange(len(text) + 1)
    junk = [
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b'"',
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b"\n",
        b"\r",
        b",",
        b"9" * 5000,
    ]
    junk += [b"1e999", b"NaN", b"\xed\xa0\x80", b"=", b"# "]
    change = random.randrange(4)
    if change == 0:
        return content[:at]
    if change == 1:
        return random.choice(junk) + content
    if change == 2:
        return content[:at] + random.choice(junk) + content[at:]
    return content[:at] + content[at + random.randrange(1, 40) :]


def written(name, content):
    """A file's text; what TOML cannot hold is written as JSON, which is odd too."""
    if isinstance(content, str):
        return content
    if name.endswith(".jsonl") and isinstance(content, list):
        return "".join(f"{json.dumps(line)}\n" for line in content)
    if name.endswith(".toml"):
        with contextlib.suppress(Exception):
            return tomli_w.dumps(content)
    return json.dumps(content)


class TooMuchWork(BaseException):
    """A command has called more functions than any useful one."""


@dataclass
class Ran:
    """What came of a command."""

    code: int
    out: str
    error: str
    calls: int

    @classmethod
    def of(cls, odd, folder):
        """Write the files into a folder, and run the command there, in this process."""
        compile_once()
        for name, content in odd.files.items():
            (folder / name).write_bytes(content)
        out, error, calls = io.StringIO(), io.StringIO(), 0

        def count(_frame, event, _argument):
            nonlocal calls
            calls += event == "call"
            if calls > MOST_CALLS:
                sys.setprofile(None)
                raise TooMuchWork(repr(odd))

        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            sys.setprofile(count)
            try:
                code = main(odd.words)
            except SystemExit as end:
                code = end.code or 0
            finally:
                sys.setprofile(None)
        return cls(code, out.getvalue(), error.getvalue(), calls)

    def check(self, folder):
        """The law."""
        assert self.code in (0, 2), self.code
        if self.code:
            assert self.error.startswith("error: "), self.error
            assert self.error.count("\n") == 1, self.error
            assert len(self.error) <= LONGEST_LINE, self.error
        else:
            assert not NO_NUMBER.search(self.out), self.out
            assert "Traceback" not in self.error, self.error
        assert not list(folder.rglob(".unfinished-*"))
        for one in filter(Path.is_file, folder.rglob("out.json")):
            json.loads(one.read_text(encoding="utf-8"), parse_constant=_refuse)


def _refuse(word):
    raise AssertionError(f"{word} is no number")
