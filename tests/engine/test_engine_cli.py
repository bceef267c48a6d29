"""`python -m engine`: files of requests in, results out, interruptions and resumption, mistakes in one line."""

import _thread
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from engine_models import reference
from packed_models import what_is_left
from short_calibrations import short_calibrations

import engine
from engine.cli import main
from engine.generation import find_tokenizer, load_model
from engine.generation.files.requests import read_requests
from engine.generation.files.results import Results
from engine.running.demo import make_model
from sim.problem import Hardware, Histogram
from traces.files import read_trace
from validation.replay import replay_trace

NEW = 4


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(path, hidden_size=32, num_layers=2)
    return path


@pytest.fixture
def command(folder, tmp_path):
    def build(lines, *extra, output="results.jsonl"):
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        (tmp_path / "in.jsonl").write_text(text, encoding="utf-8")
        paths = ["--model", str(folder), "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / output)]
        sizes = ["--micro-batch-size", "2", "--num-micro-batches", "2", "--max-new-tokens", str(NEW)]
        return ["run", *paths, *sizes, "--device", "emulated", *extra]

    return build


def results(tmp_path):
    return [json.loads(line) for line in (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()]


TEXTS = ["A mixture", "of", "experts runs", "here", "and now", "in", "pages of weights", "!", "end"]


def test_results_in_order_equal_to_plain_generation(folder, command, tmp_path):
    assert main(command([{"prompt": text} for text in TEXTS], "--trace", str(tmp_path / "run.json.gz"))) == 0
    tokenizer, model = find_tokenizer(folder), load_model(folder)
    expected = reference(model, [tokenizer(text)["input_ids"] for text in TEXTS], 2, NEW)
    found = results(tmp_path)
    assert [line["prompt"] for line in found] == TEXTS
    assert [line["token_ids"] for line in found] == expected
    assert [line["text"] for line in found] == tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert read_trace(tmp_path / "run.json.gz").metadata["schedule"] == "cgopipe"


def test_the_call_takes_a_folder_and_text(folder):
    result = engine.run(folder, TEXTS, micro_batch_size=3, max_new_tokens=NEW)
    tokenizer, model = find_tokenizer(folder), load_model(folder)
    expected = reference(model, [tokenizer(text)["input_ids"] for text in TEXTS], 3, NEW)
    assert result.sequences == expected
    assert result.texts == tokenizer.batch_decode(expected, skip_special_tokens=True)


def test_stop_strings_and_other_arguments_of_generate(folder):
    tokenizer, model = find_tokenizer(folder), load_model(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    free = reference(model, ids, 3, 12)
    stop = next(text for row in free for text in map(tokenizer.decode, row[3:9]) if text.isascii() and text)
    kwargs = {"stop_strings": stop, "tokenizer": tokenizer}
    result = engine.run(model, ids, micro_batch_size=3, max_new_tokens=12, **kwargs)
    padded = reference(model, ids, 3, 12, **kwargs)
    assert any(len(row) < 12 for row in result.sequences)
    for found, expected in zip(result.sequences, padded, strict=True):
        assert found == expected[: len(found)]
        assert set(expected[len(found) :]) <= {tokenizer.pad_token_id}


def test_stop_strings_end_each_request_of_a_stream(folder):
    tokenizer, model = find_tokenizer(folder), load_model(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    free = reference(model, ids, 3, 12)
    stop = next(text for row in free for text in map(tokenizer.decode, row[3:9]) if text.isascii() and text)
    stream = engine.stream(
        model, ids, micro_batch_size=3, max_new_tokens=12, tokenizer=tokenizer, device="emulated", stop_strings=stop
    )
    found = {output.number: output.sequence for output in stream}
    assert any(len(row) < 12 for row in found.values())
    for number, prompt in enumerate(ids):
        assert [found[number]] == reference(model, [prompt], 1, 12, stop_strings=stop, tokenizer=tokenizer)


def test_prompts_as_token_ids_and_sampling(folder, command, tmp_path):
    ids = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    sampling = ["--temperature", "1.5", "--top-k", "50", "--repetition-penalty", "1.2", "--seed", "7"]
    assert main(command([{"prompt_token_ids": one} for one in ids], *sampling)) == 0
    options = {"do_sample": True, "temperature": 1.5, "top_k": 50, "repetition_penalty": 1.2}
    expected = reference(load_model(folder), ids, 1, NEW, seed=7, **options)
    assert [line["token_ids"] for line in results(tmp_path)] == expected


def test_lines_that_cannot_be_run_are_named_and_the_others_run(command, tmp_path, capsys):
    long = {"prompt": "x" * 600}
    lines = [{"prompt": "one"}, "{not json", "[1]", {"prompt": ""}, long, {"text": "two"}, {"prompt": "three"}]
    assert main(command(lines)) == 0
    found = results(tmp_path)
    assert [("token_ids" in line, "error" in line) for line in found] == [
        (True, False),
        *[(False, True)] * 5,
        (True, False),
    ]
    told = capsys.readouterr().err
    assert "line 2 is not JSON" in told
    assert found[1]["error"].startswith("line 2 is not JSON")
    assert "line 3 is no JSON object but a list" in found[2]["error"]
    assert "line 4" in found[3]["error"]
    assert "is empty" in found[3]["error"]
    assert "line 5" in found[4]["error"]
    assert "512 positions" in found[4]["error"]
    assert "line 6: no prompt found" in found[5]["error"]


def openai(custom_id, **body):
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def with_chat_template(folder, tmp_path):
    """The model of a folder in one of its own, with a tokenizer that takes messages."""
    tokenizer, own = find_tokenizer(folder), tmp_path / "chat"
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    load_model(folder).save_pretrained(own)
    tokenizer.save_pretrained(own)
    return own


def test_openai_batch_format(folder, command, tmp_path):
    own = with_chat_template(folder, tmp_path)
    messages = [{"role": "user", "content": "Hi"}]
    lines = [
        openai("a", model="m", messages=messages, max_tokens=2),
        openai("b", model="m", messages=messages),
        openai("c", model="m", messages=messages, tools=[{"type": "function"}]),
        openai("d", model="m"),
    ]
    arguments = command(lines)
    arguments[2] = str(own)
    assert main(arguments) == 0
    a, b, c, d = results(tmp_path)
    assert [line["custom_id"] for line in (a, b, c, d)] == ["a", "b", "c", "d"]
    tokenizer = find_tokenizer(own)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    expected = reference(load_model(folder), [ids], 1, NEW)[0]
    choice = b["response"]["body"]["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": tokenizer.decode(expected, skip_special_tokens=True)}
    assert b["response"]["body"]["usage"] == {
        "prompt_tokens": len(ids),
        "completion_tokens": NEW,
        "total_tokens": len(ids) + NEW,
    }
    assert a["response"]["body"]["usage"]["completion_tokens"] == 2
    assert choice["finish_reason"] == "length"
    assert "tools: asks for calls of tools" in c["error"]["message"]
    assert "messages" in d["error"]["message"]
    assert c["response"] is d["response"] is None


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_resumes_and_repeats_nothing(command, tmp_path, monkeypatch):
    from engine.generation.files import request_file as serve

    lines = [{"prompt": text} for text in TEXTS]
    whole = command(lines)
    assert main(whole) == 0
    expected = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    (tmp_path / "results.jsonl").unlink()

    real_run, generated = serve.run, []

    def interrupted(model, prompts, *args, on_batch, **kwargs):
        def stop(batch):
            on_batch(batch)
            generated.extend(batch.sequences)
            if len(generated) == 4:
                _thread.interrupt_main()

        return real_run(model, prompts, *args, on_batch=stop, **kwargs)

    monkeypatch.setattr(serve, "run", interrupted)
    assert main(whole) == 130
    assert len(results(tmp_path)) == len(generated) == 4
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"prompt": "and n')  # cut off in the middle of a line
    assert main([*whole, "--resume"]) == 0
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == expected
    assert len(generated) == len(TEXTS)
    assert main([*whole, "--resume"]) == 0
    assert len(generated) == len(TEXTS)


def test_resuming_another_inputs_results_is_refused(command, tmp_path, capsys):
    assert main(command([{"prompt": "one"}])) == 0
    assert main(command([{"prompt": "two"}])) == 2
    assert "give --resume to go on with it" in capsys.readouterr().err
    assert main(command([{"prompt": "two"}], "--resume")) == 2
    assert "does not belong to this input, see line 1" in capsys.readouterr().err


def test_resumed_sampling_equals_an_undisturbed_run(command, tmp_path, capsys):
    """Whatever the micro-batches, and with a seed that nobody gave."""
    whole = command([{"prompt": "Tell me"}] * 6, "--temperature", "1.5")
    assert main(whole) == 0
    expected = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    lines = expected.splitlines(keepends=True)
    assert len({tuple(json.loads(line)["token_ids"]) for line in lines}) == 6
    (tmp_path / "results.jsonl").write_text("".join(lines[:3]), encoding="utf-8")
    at = whole.index("--micro-batch-size")
    assert main([*whole[: at + 1], "3", *whole[at + 2 :], "--resume"]) == 0
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == expected
    capsys.readouterr()
    for other in (["--temperature", "1.4"], ["--max-new-tokens", "3"], ["--seed", "1"]):
        assert main([*whole, "--resume", *other]) == 2
        assert f"{other[0][2:].replace('-', '_')} " in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == expected


def test_lines_ask_for_different_things(folder, command, tmp_path):
    lines = [
        {"prompt": "one", "temperature": 1.5, "seed": 5, "max_tokens": 7},
        {"prompt": "two"},
        {"prompt": "three", "temperature": 0, "logprobs": 2, "n": 2, "max_tokens": 2, "tag": [1]},
        {"prompt": "four", "top_p": 0.5, "max_completion_tokens": 3},
    ]
    tokenizer, model = find_tokenizer(folder), load_model(folder)

    def alone(text, new, seed=None, **options):
        return reference(model, [tokenizer(text)["input_ids"]], 1, new, seed=seed, **options)[0]

    for extra in ((), ("--stream",)):
        (tmp_path / "results.jsonl").unlink(missing_ok=True)
        assert main(command(lines, "--seed", "11", *extra)) == 0
        found = {line["prompt"]: line for line in results(tmp_path)}
        one, two, three, four = (found[line["prompt"]] for line in lines)
        assert one["token_ids"] == alone("one", 7, 5, do_sample=True, temperature=1.5)
        assert two["token_ids"] == alone("two", NEW)
        assert four["token_ids"] == alone("four", 3, 14, do_sample=True, top_p=0.5)
        assert [choice["token_ids"] for choice in three["choices"]] == [alone("three", 2)] * 2
        assert [len(one["top_logprobs"]) for one in three["choices"][0]["logprobs"]] == [2, 2]
        assert three["tag"] == [1]
        assert three["made_by"]["max_new_tokens"] == NEW
        assert three["made_by"]["seed"] == 11


def test_all_that_can_be_checked_is_checked_before_the_model_is_loaded(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("engine.running.command.model_of", lambda *_: pytest.fail("the model was loaded"))
    good = [{"prompt": "one"}]
    (tmp_path / "results.jsonl").write_text("mine", encoding="utf-8")
    for extra, told in (
        ((), "exists already"),
        (("--resume",), "holds no complete result"),
        (("--output", str(tmp_path / "in.jsonl")), "it is the input"),
        (("--output", str(tmp_path)), "cannot be written"),
        (("--top-p", "2", "--output", "new.jsonl"), "top_p: 2.0 is not allowed"),
        (("--temperature", "nan", "--output", "new.jsonl"), "temperature: nan is not allowed"),
        (("--repetition-penalty", "0", "--output", "new.jsonl"), "repetition_penalty: 0.0 is not allowed"),
        (("--top-k", "-1", "--output", "new.jsonl"), "top_k: -1 is not allowed"),
        (("--seed", "99999999999999999999", "--output", "new.jsonl"), "--seed: 99999999999999999999"),
        (("--device-memory-gb", "inf", "--output", "new.jsonl"), "--device-memory-gb: inf is not allowed"),
    ):
        assert main(command(good, *extra)) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert told in last
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == "mine"
    assert main(command(good, "--max-new-tokens", "9999", "--output", str(tmp_path / "new.jsonl"))) == 1
    assert "1 of 1 requests failed" in capsys.readouterr().err


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("what", ["--trace", "--record-routing"])
def test_where_nothing_can_be_written_is_told_before_the_model_is_loaded(command, tmp_path, capsys, monkeypatch, what):
    monkeypatch.setattr("engine.running.command.model_of", lambda *_: pytest.fail("the model was loaded"))
    path = tmp_path / "sealed" / "file.json"
    assert main(command([{"prompt": "one"}], what, str(path))) == 2
    assert capsys.readouterr().err == f"error: {path}: nothing can be written into {path.parent}: give another place\n"
    assert not (tmp_path / "results.jsonl").exists()


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A folder `sealed` that a system without permissions for the administrator would not let anybody write into."""
    sealed = tmp_path / "sealed"
    sealed.mkdir(mode=0o555)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: real(path, mode) and not (path == sealed and mode & os.W_OK))


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no private mounts")
@pytest.mark.parametrize("resume", [(), ("--resume",)], ids=["anew", "resumed"])
def test_a_file_system_that_is_read_only_is_told_in_a_line_and_left_as_it_is(command, tmp_path, resume):
    """Permissions do not bind the administrator, but such a mount does."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run = shlex.join([sys.executable, "-m", "engine", *command([{"prompt": "a"}], *resume, output="mounted/out.jsonl")])
    inside = shlex.quote(str(mounted))
    script = (
        f"mount -t tmpfs tmpfs {inside} || exit 77; echo mine > {inside}/out.jsonl; mount -o remount,ro {inside} || "
        f"exit 77; {run}; code=$?; cat {inside}/out.jsonl; exit $code"
    )
    ended = subprocess.run(["unshare", "-rm", "sh", "-c", script], check=False, capture_output=True, text=True)
    if ended.returncode in (1, 77) and "error:" not in ended.stderr:
        pytest.skip(f"no private mounts here: {ended.stderr.strip()}")
    output = mounted / "out.jsonl"
    assert ended.stderr == f"error: output {output}: cannot be written: Read-only file system\n"
    assert (ended.returncode, ended.stdout) == (2, "mine\n")


@pytest.mark.parametrize("change", ["missing", "unexpected", "mis-shaped"])
def test_a_checkpoint_that_is_not_the_models_is_refused_by_name(folder, command, tmp_path, capsys, change):
    from safetensors.torch import load_file, save_file

    own, name = tmp_path / "other", "model.layers.0.self_attn.q_proj.weight"
    own.mkdir()
    for file in folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    weights = load_file(own / "model.safetensors")
    if change == "unexpected":
        weights[f"{name}.more"] = weights[name].clone()
    elif change == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:4].clone()
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    arguments = command([{"prompt": "one"}])
    arguments[2] = str(own)
    assert main(arguments) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: model '{own}'")
    assert name in last
    assert not (tmp_path / "results.jsonl").exists()


def test_a_full_disk_while_writing_results(command, capsys):
    assert main(command([{"prompt": "one"}], output="/dev/full")) == 2
    told = capsys.readouterr().err
    assert "error: output /dev/full: cannot be written: No space left on device; 0 lines are complete" in told
    assert "Traceback" not in told


def test_corrupt_weights(folder, command, tmp_path, capsys):
    own = tmp_path / "broken"
    own.mkdir()
    for file in folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    weights = own / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    arguments = command([{"prompt": "one"}])
    arguments[2] = str(own)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert f"error: model '{own}' cannot be loaded: " in told
    assert "sound *.safetensors files" in told


def test_pickled_weights_are_not_loaded(folder, command, tmp_path, capsys):
    import torch

    own = tmp_path / "pickled"
    own.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (own / name).write_bytes((folder / name).read_bytes())
    torch.save(load_model(folder).state_dict(), own / "pytorch_model.bin")
    arguments = command([{"prompt": "one"}])
    arguments[2] = str(own)
    assert main(arguments) == 2
    assert "cannot be loaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--schedule", "cgopip"], "did you mean cgopipe"),
        (["--device-memory-gb", "0.0001"], "the plan: schedule cgopipe"),
        (["--device", "npu"], "device: 'npu' is not known"),
        (["--h2d-gbs", "0"], "h2d bandwidth"),
        (["--policy", "none.json"], "leave out --micro-batch-size"),
        (["--plan-for", "t4"], "--plan-for chooses policy and sizes"),
        (["--weight-bits", "4"], "the engine runs 4.5, 8.5 or the model's own 32"),
        (["--trace", "trace.txt"], "ends in .json or .json.gz"),
        (["--output", "/nowhere/out.jsonl"], "there is no folder /nowhere"),
        (["--input", "/nowhere/in.jsonl"], "cannot be read"),
        (["--model", "/nowhere/model"], "cannot be loaded"),
        (["--nonsense"], "unrecognized arguments"),
        (["--stream", "--schedule", "flexgen"], "flexgen: its steps cannot carry prompts beside decode"),
        (
            ["--stream", "--record-routing", "counts.json"],
            "--record-routing is for batches: leave it out with --stream",
        ),
    ],
)
def test_mistakes_are_one_line(command, capsys, extra, told):
    assert main(command([{"prompt": "one"}], *extra)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last


def test_an_empty_input(command, tmp_path, capsys):
    assert main(command([])) == 2
    assert "holds no request" in capsys.readouterr().err


def test_a_policy_file(command, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text('{"schedule": "flexgen", "micro_batch_size": 2, "num_micro_batches": 2}', encoding="utf-8")
    arguments = command([{"prompt": text} for text in TEXTS], "--schedule", "flexgen", "--policy", str(policy))
    at = arguments.index("--micro-batch-size")
    del arguments[at : at + 4]
    assert main(arguments) == 0
    assert len(results(tmp_path)) == len(TEXTS)


@pytest.mark.parametrize("bits", [4.5, 8.5])
def test_packed_experts(folder, command, tmp_path, bits):
    trace = tmp_path / "run.json.gz"
    arguments = command([{"prompt": text} for text in TEXTS], "--weight-bits", str(bits), "--trace", str(trace))
    assert main(arguments) == 0
    tokenizer, left = find_tokenizer(folder), what_is_left(load_model(folder), bits)
    expected = reference(left, [tokenizer(text)["input_ids"] for text in TEXTS], 2, NEW)
    assert [line["token_ids"] for line in results(tmp_path)] == expected
    replay = replay_trace(read_trace(trace), Hardware.load("gcp-t4"))
    assert replay.order_check.tasks == len(replay.predicted.spans)
    assert {span.bytes for span in replay.predicted.spans if span.op == "LoadWeights"}.isdisjoint({0})


@pytest.mark.parametrize("bits", ["4.5", "16"])
def test_a_policy_is_planned_for_the_width_that_is_asked_for(command, tmp_path, capsys, bits):
    arguments = command([{"prompt": text} for text in TEXTS], "--plan-for", "t4", "--weight-bits", bits)
    at = arguments.index("--micro-batch-size")
    del arguments[at : at + 4]
    assert main(arguments) == (0 if bits == "4.5" else 2)
    told = capsys.readouterr().err
    assert ("weight_bits 4.5; expected" in told) == (bits == "4.5")
    assert ("weight_bits: 16: the engine runs" in told) == (bits == "16")


def test_a_policy_file_has_the_width_of_weights(command, tmp_path, capsys):
    policy = tmp_path / "policy.json"
    policy.write_text('{"micro_batch_size": 2, "num_micro_batches": 2}', encoding="utf-8")
    arguments = command([{"prompt": "one"}], "--policy", str(policy), "--weight-bits", "4.5")
    at = arguments.index("--micro-batch-size")
    del arguments[at : at + 4]
    assert main(arguments) == 2
    assert "--policy holds the width of weights already" in capsys.readouterr().err


def test_unwritten_results_are_told_apart_from_written_ones(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt_token_ids": [3]}\n{"prompt_token_ids": [4]}\n', encoding="utf-8")
    requests = read_requests(source)
    out = Results(tmp_path / "out.jsonl", requests, resume=True)
    out.append(['{"prompt_token_ids": [3], "token_ids": [9], "finished": false}\n'])
    out.close()
    again = Results(tmp_path / "out.jsonl", requests, resume=True)
    assert again.done == 1
    again.close()


def test_demo_runs_every_schedule_it_is_given(tmp_path, capsys):
    assert main(["demo", "--folder", str(tmp_path / "demo"), "--schedule", "zero"]) == 0
    out = capsys.readouterr().out
    assert out.count(" -> [") == 8
    assert "run.json.gz" in out


@pytest.mark.parametrize("schedule", ["cgopipe", "zero"])
def test_a_planned_policy_says_what_it_expects_and_what_came(command, tmp_path, capsys, schedule):
    arguments = command([{"prompt": text} for text in TEXTS], "--plan-for", "t4", "--schedule", schedule)
    at = arguments.index("--micro-batch-size")
    del arguments[at : at + 4]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert re.search(r"policy: \d+×\d+ requests, .*; expected [\d.]+ tokens/s, bottleneck \w+, schedule", told)
    assert re.search(r"expected [\d.]+ tokens/s on t4, measured [\d.]+ on emulated device", told)
    assert len(results(tmp_path)) == len(TEXTS)


def test_only_errors(command, tmp_path, capsys):
    lines = ["{", {"prompt": ""}]
    assert main(command(lines)) == 1
    assert ["error" in line for line in results(tmp_path)] == [True, True]
    told = capsys.readouterr().err
    assert "2 of 2 requests failed" in told
    assert "nothing left to do" not in told
    assert main(command(lines, "--resume")) == 1
    assert main(command([*lines, {"prompt": "one"}], "--resume")) == 0
    assert "2 of 3 requests failed" in capsys.readouterr().err


def test_without_a_policy_it_plans_for_the_machine_at_hand(command, tmp_path, capsys):
    arguments = command([{"prompt": text} for text in TEXTS], "--h2d-gbs", "1", "--device-memory-gb", "0.1")
    for sized in ("--micro-batch-size", "--num-micro-batches"):
        at = arguments.index(sized)
        del arguments[at : at + 2]
    with short_calibrations():
        assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "measuring this machine" in told
    assert "policy: " in told
    assert "expected " in told
    assert "tokens/s on this machine, measured" in told
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(TEXTS)


def test_routing_is_recorded_and_planned_with(command, tmp_path, capsys):
    lines, path = [{"prompt": text} for text in TEXTS], tmp_path / "routing.json"
    assert main(command(lines, "--record-routing", str(path))) == 0
    assert sum(Histogram.read(path).layers[1].decode.used) > 0
    plain = ["--max-new-tokens", "2", "--device", "emulated", "--plan-for", "gcp-t4", "--routing", str(path)]
    files = command(lines, output="planned.jsonl")[:7]
    assert main([*files, *plain]) == 0
    assert len((tmp_path / "planned.jsonl").read_text().splitlines()) == len(TEXTS)
    capsys.readouterr()
    assert main([*files, *plain[:-1], "none.json"]) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err
    assert main(command(lines, "--routing", str(path), output="again.jsonl")) == 0, "a given policy places by rank"


def test_a_stream_without_sizes_is_planned(command, tmp_path, capsys):
    arguments = command([{"prompt": text} for text in TEXTS], "--stream", "--plan-for", "t4")
    at = arguments.index("--micro-batch-size")
    del arguments[at : at + 4]
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert re.search(r"policy: \d+×\d+ requests, .*; expected [\d.]+ tokens/s, bottleneck \w+, schedule", told)
    assert re.search(r"expected [\d.]+ tokens/s on t4, measured [\d.]+ on emulated device", told)
    assert len(results(tmp_path)) == len(TEXTS)


# in a stream ---------------------------------------------------------------------------------------------------------


def test_a_stream_gives_each_request_its_own_tokens_and_its_line(folder, command, tmp_path, capsys):
    lines = [{"prompt": text} for text in TEXTS]
    arguments = command([*lines[:3], "{not json", *lines[3:]], "--stream", "--trace", str(tmp_path / "run.json.gz"))
    assert main(arguments) == 0
    found = {line["line"]: line for line in results(tmp_path)}
    assert sorted(found) == list(range(1, 11))
    assert "line 4 is not JSON" in found.pop(4)["error"]
    tokenizer, model = find_tokenizer(folder), load_model(folder)
    for line in found.values():
        assert [line["token_ids"]] == reference(model, [tokenizer(line["prompt"])["input_ids"]], 1, NEW)
    told = capsys.readouterr().err
    assert "requests at a time, schedule cgopipe" in told
    assert "(9 requests in" in told
    assert "first token p50" in told
    assert len(read_trace(tmp_path / "run.json.gz").metadata["stream"]["requests"]) == 9


@pytest.mark.usefixtures("interruptible")
def test_a_stream_that_was_cut_short_goes_on_and_repeats_nothing(command, tmp_path, monkeypatch):
    from engine.generation.files import request_file as serve

    lines = [{"prompt": text} for text in TEXTS]
    whole = command(lines, "--stream")
    assert main(whole) == 0
    expected = sorted((tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines())
    (tmp_path / "results.jsonl").unlink()
    done = []

    def interrupt(output):
        done.append(output.number)
        if len(done) == 4:
            _thread.interrupt_main()

    real = serve.stream
    monkeypatch.setattr(serve, "stream", lambda *args, **kwargs: real(*args, **kwargs, on_result=interrupt))
    assert main(whole) == 130
    written = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    before = written.splitlines()
    assert len(before) < len(TEXTS)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"prompt": "and n')  # cut off in the middle of a line
    done.clear()
    done.extend([-1] * 5)  # nobody interrupts any more
    assert main([*whole, "--resume"]) == 0
    assert len(done) - 5 == len(TEXTS) - len(before), "who was done is not run again"
    content = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    assert content.startswith(written)
    assert sorted(content.splitlines()) == expected
    assert main([*whole, "--resume"]) == 0
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8") == content


def test_openai_lines_in_a_stream_end_at_their_own_limits(folder, command, tmp_path):
    own = with_chat_template(folder, tmp_path)
    messages = [{"role": "user", "content": "Hi"}]
    asked = [
        openai(name, messages=messages, max_completion_tokens=most) for name, most in (("a", 2), ("b", 99), ("c", 1))
    ]
    arguments = command(asked, "--stream")
    arguments[2] = str(own)
    assert main(arguments) == 0
    made = {line["custom_id"]: line["response"]["body"]["usage"]["completion_tokens"] for line in results(tmp_path)}
    assert made == {"a": 2, "b": 99, "c": 1}
    assert main([*arguments, "--resume"]) == 0
    assert len(results(tmp_path)) == 3


def test_results_of_batches_do_not_go_on_in_a_stream(command, tmp_path, capsys):
    lines = [{"prompt": "one"}, {"prompt": "two"}]
    assert main(command(lines)) == 0
    assert main(command(lines, "--stream", "--resume")) == 2
    assert (
        "line 1 names no line of this input, or one twice: was it written without --stream?" in capsys.readouterr().err
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", [(), ("--stream",)], ids=["batches", "stream"])
def test_killed_ten_times_at_any_moment_a_sampling_run_gives_the_bytes_of_an_undisturbed_one(command, tmp_path, way):
    whole = command([{"prompt": text} for text in TEXTS * 16], "--temperature", "1.5", "--seed", "3", *way)
    output, waits, killed = tmp_path / "results.jsonl", random.Random(7), []
    assert main(whole) == 0
    expected = output.read_bytes()
    output.unlink()
    while len(killed) < 10:
        process = subprocess.Popen([sys.executable, "-m", "engine", *whole, "--resume"], stderr=subprocess.DEVNULL)
        before = output.read_bytes().count(b"\n") if output.exists() else 0
        enough = before + waits.randrange(0, 10)
        while process.poll() is None and (not output.exists() or output.read_bytes().count(b"\n") < enough):
            time.sleep(0.001)
        time.sleep(waits.random() / 20)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was over before it could be killed: give it more to do"
        killed.append(output.read_bytes() if output.exists() else b"")
    assert len(set(killed)) > 3, "hardly any was killed at work"
    assert main([*whole, "--resume"]) == 0
    found = output.read_bytes()
    assert all(found.startswith(content[: content.rfind(b"\n") + 1]) for content in killed)
    assert found == expected if not way else sorted(found.split(b"\n")) == sorted(expected.split(b"\n"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(10))
def test_a_stream_that_is_killed_loses_nothing_that_was_written_and_does_nothing_twice(command, tmp_path, seed):
    lines = [{"prompt": text} for text in TEXTS * 4]
    whole = command(lines, "--stream")
    assert main(whole) == 0
    output = tmp_path / "results.jsonl"
    expected = sorted(output.read_text(encoding="utf-8").splitlines())
    output.unlink()
    waits = random.Random(seed)
    for _ in range(50):
        process = subprocess.Popen([sys.executable, "-m", "engine", *whole, "--resume"], stderr=subprocess.DEVNULL)
        enough = waits.randrange(1, 12) + (len(output.read_text().splitlines()) if output.exists() else 0)
        while process.poll() is None and (not output.exists() or len(output.read_bytes().splitlines()) < enough):
            time.sleep(0.01)
        process.kill()
        if process.wait() == 0:
            break
    assert sorted(output.read_text(encoding="utf-8").splitlines()) == expected


@pytest.mark.parametrize("mode", [(), ("--stream",)])
def test_joules_are_measured_or_it_is_said_why_not(command, tmp_path, capsys, mode):
    assert main(command([{"prompt": text} for text in TEXTS[:3]], "--energy", *mode)) == 0
    told = capsys.readouterr().err.splitlines()
    why = [line for line in told if line.startswith("no energy counter of device: ")]
    assert why == ["no energy counter of device: the host's cores play the device: its joules are among theirs"]
    assert [line for line in told if line.startswith(("energy: ", "no energy counter of host: "))]
    assert len(results(tmp_path)) == 3
