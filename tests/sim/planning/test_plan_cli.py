"""`python -m sim plan`: its options, its files, and the way of a policy from plan to compare and to the engine."""

import argparse
import json
from pathlib import Path

import pytest

from sim.cli import main
from sim.planning import PolicyGrid
from sim.problem import Policy, read_policy_file
from sim.schedule import by_name
from traces.errors import InputError


@pytest.fixture(autouse=True)
def small_grid(monkeypatch):
    """A few sizes, so that a plan takes no time."""
    sizes = {"micro_batch_sizes": (1, 8, 64), "num_micro_batches": (1, 4, 16), "expert_values": 3}

    def few(*args, **given):
        return PolicyGrid(*args, **given) if args else PolicyGrid(**{**sizes, **given})

    monkeypatch.setattr("sim.planning.PolicyGrid", few)
    monkeypatch.setattr("sim.planning.search.planner.PolicyGrid", few)
    monkeypatch.setattr("sim.planning.picture.PER_DOUBLING", 1)


SMALL = ["--model", "olmoe-1b-7b", "--hardware", "t4", "--prompt-len", "60", "--gen-len", "5", "--jobs", "1"]
QUICK = ["--schedules", "cgopipe,accelerate", "--quick"]


def run(*args, code=0):
    assert main(["plan", *SMALL, *QUICK, *args]) == code


def planned(capsys, *args):
    run("--json", "-", *args)
    return json.loads(capsys.readouterr().out)


class TestOutput:
    def test_json_has_the_plan_its_effort_and_its_reasons(self, capsys):
        table = planned(capsys)
        assert table["schedule"] == "cgopipe"
        assert table["candidates"] > 50
        assert table["considered"] >= table["candidates"] >= table["simulated"] >= 3
        assert table["left_out"] == 0
        assert table["wall_s"] > 0
        assert set(table["explanation"]["memory"]) == {"device", "host", "pinned"}
        assert table["top"][0]["policy"] == table["policy"]
        assert table["top"][0]["throughput_tokens_per_s"] == table["throughput_tokens_per_s"]

    def test_top_limits_the_list(self, capsys):
        assert len(planned(capsys, "--top", "2")["top"]) == 2

    def test_the_table_names_the_choice_and_the_reasons(self, capsys):
        run()
        text = capsys.readouterr().out
        assert "Best throughput: cgopipe with" in text
        assert "where the bytes are" in text
        assert "Next best schedule: accelerate" in text
        assert "policies considered" in text

    def test_what_more_of_each_resource_gives(self, capsys, tmp_path, monkeypatch):
        for name in ("explanation", "report"):
            monkeypatch.setattr(f"sim.planning.{name}.FACTORS", (2.0,))
        assert main(["plan", *SMALL, "--schedules", "cgopipe", "--json", str(tmp_path / "plan.json")]) == 0
        text = capsys.readouterr().out
        assert "planned anew with other machines" in text
        assert "DRAM bandwidth" in text
        assert "Twice as much of one resource would give" in text
        explanation = json.loads((tmp_path / "plan.json").read_text())["explanation"]
        more = explanation["one_more_gb_of_device_memory"]
        assert more["resource"] == "device memory"
        assert more["factor"] == pytest.approx(1 + 1 / 16)

    def test_a_width_is_planned_with(self, capsys):
        table = planned(capsys, "--weight-bits", "4", "--kv-bits", "8")
        assert table["policy"]["weight_bits"] == 4
        assert table["policy"]["kv_bits"] == 8

    def test_latency_prefers_a_smaller_batch(self, capsys):
        fast = planned(capsys, "--objective", "latency")
        most = planned(capsys)
        assert fast["num_requests"] < most["num_requests"]
        assert fast["seconds_per_token"] < most["seconds_per_token"]
        assert fast["objective"] == "latency"

    def test_exactly_so_many_requests(self, capsys):
        args = ["plan", *SMALL, "--schedules", "hybrid,cgopipe", "--quick", "--batch", "3", "--json", "-"]
        assert main(args) == 0
        table = json.loads(capsys.readouterr().out)
        assert {one["num_requests"] for one in table["top"]} == {3}
        for one in (table, *table["top"]):
            assert one["decode_tokens_per_s"] == pytest.approx(3 / one["seconds_per_token"])
            assert one["prefill_tokens_per_s"] == pytest.approx(3 * 60 / one["prefill_s"])
            assert one["time_to_first_token_s"] == one["prefill_s"]
        (experts,) = table["explanation"]["experts"]
        places = ("resident", "streamed", "fetched", "on_host")
        assert experts["experts"] == 64
        assert sum(experts[place][0] for place in places) <= 64 <= sum(experts[place][1] for place in places)

    def test_says_what_the_objective_means_and_where_experts_are(self, capsys):
        run("--objective", "memory")
        text = " ".join(capsys.readouterr().out.split())
        assert "Memory means the fewest bytes on the device that reach 95% of the best throughput." in text
        assert "Experts: " in text
        assert "of 64 a layer" in text

    def test_the_papers_search(self, capsys):
        assert main(["plan", "--optimizer", "hrm", "--gen-len", "8", "--quick", "--json", "-", "--top", "1"]) == 0
        table = json.loads(capsys.readouterr().out)
        assert (table["policy"]["micro_batch_size"], table["policy"]["num_micro_batches"]) == (36, 14)
        assert table["throughput_tokens_per_s"] <= table["bound_tokens_per_s"] * 1.002

    def test_a_picture(self, tmp_path):
        run("--plot", str(tmp_path / "plan.png"))
        assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


class TestPolicyFile:
    def test_goes_from_plan_to_compare(self, tmp_path, capsys):
        path = tmp_path / "policy.json"
        table = planned(capsys, "--out", str(path))
        assert main(["compare", *SMALL, "--schedules", "cgopipe", "--policy", str(path), "--json", "-"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert result["policy"] == table["policy"]
        assert result["throughput_tokens_per_s"] == pytest.approx(table["throughput_tokens_per_s"], rel=1e-9)

    def test_goes_from_plan_to_the_engine(self, tmp_path):
        given_policy = pytest.importorskip("engine.running.command").given_policy
        path = tmp_path / "policy.json"
        run("--out", str(path))
        schedule, fields = read_policy_file(path)
        sizes = {"micro_batch_size": None, "num_micro_batches": None}
        given = argparse.Namespace(policy=path, plan_for=None, weight_bits=None, attention_on_device=None, **sizes)
        read = given_policy(given, by_name(schedule))
        assert read == Policy.from_dict(fields, by_name(schedule))
        assert {"schema": 1, "schedule": schedule, **read.to_dict()} == json.loads(path.read_text())
        with pytest.raises(InputError, match="is for schedule cgopipe: give --schedule cgopipe"):
            given_policy(given, by_name("flexgen"))

    def test_of_a_schema_that_is_not_known_is_refused(self, tmp_path):
        path = tmp_path / "policy.json"
        path.write_text('{"schema": 2, "micro_batch_size": 1}')
        with pytest.raises(InputError, match="schema 2 is not known; this version reads 1"):
            read_policy_file(path)

    def test_an_unknown_field_is_refused_by_name(self, tmp_path, capsys):
        path = tmp_path / "policy.json"
        run("--out", str(path))
        path.write_text(json.dumps({**json.loads(path.read_text()), "experts_on_devise": 1}))
        capsys.readouterr()
        assert main(["compare", *SMALL, "--schedules", "cgopipe", "--policy", str(path)]) == 2
        assert "experts_on_devise: unknown field; did you mean experts_on_device" in capsys.readouterr().err

    def test_a_missing_field_is_refused_by_name(self, tmp_path, capsys):
        path = tmp_path / "policy.json"
        run("--out", str(path))
        table = json.loads(path.read_text())
        del table["micro_batch_size"], table["num_micro_batches"]
        path.write_text(json.dumps(table))
        capsys.readouterr()
        assert main(["compare", *SMALL, "--schedules", "cgopipe", "--policy", str(path)]) == 2
        assert "micro_batch_size: missing" in capsys.readouterr().err


class TestMistakes:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--objective", "speed"], "--objective: 'speed' is none of throughput, latency, memory, energy"),
            (["--optimizer", "magic"], "--optimizer: 'magic' is none of simulator, hrm"),
            (["--top", "0"], "--top: 0 is not allowed"),
            (["--gen-len", "0"], "--gen-len: 0 is not allowed"),
            (["--schedules", "cgopip"], "unknown schedule 'cgopip'; did you mean cgopipe?"),
            (["--plot", "plan.bmp"], "--plot: 'plan.bmp' is not a picture"),
            (["--out", "/nowhere/policy.json"], "/nowhere/policy.json: cannot be written"),
            (["--batch", "0"], "--batch: 0 is not allowed"),
            (["--optimizer", "hrm", "--batch", "1"], "leave out --objective, --schedules and --batch"),
            (["--optimizer", "hrm", "--objective", "latency"], "--optimizer hrm: it knows throughput and cgopipe only"),
        ],
    )
    def test_is_one_line_that_says_what(self, args, message, capsys):
        run(*args, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

    def test_nothing_fits_says_the_smallest_change(self, tmp_path, capsys):
        path: Path = tmp_path / "small.toml"
        quantity = '{ value = 6, unit = "GB", basis = "assumed", source = "a small one" }'
        path.write_text(
            f'extends = "t4"\n[host_memory]\ncapacity = {quantity}\n[device_memory]\ncapacity = {quantity}\n'
        )
        run("--hardware", str(path), "--prompt-len", "20", code=2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "host memory is" in error
        assert "bytes short" in error
        assert "with weight_bits 8" in error


class TestRequests:
    def test_text_and_json_say_how_they_are_served_best_and_where_every_byte_is(self, tmp_path, capsys):
        path = tmp_path / "plan.json"
        run("--requests", "30", "--top", "2", "--json", str(path))
        table, text = json.loads(path.read_text()), " ".join(capsys.readouterr().out.split())
        assert (table["num_requests"], table["served"]["generated_tokens"]) == (30, 150)
        assert (len(table["ways"]), {one["schedule"] for one in table["ways"]}) == (2, {table["schedule"]})
        assert table["throughput_tokens_per_s"] == table["ways"][0]["throughput_tokens_per_s"]
        for one in table["memory"].values():
            assert one["used_bytes"] == sum(one["parts"].values()) <= one["capacity_bytes"]
        assert table["memory"]["host"]["parts"]["kv cache"] > 0
        assert "Best for 30 requests:" in text
        assert "batch after batch" in text
        assert "prompts beside decode" in text
        assert "where the bytes are (GB)" in text

    @pytest.mark.parametrize(
        "more", [("--batch", "4"), ("--objective", "latency"), ("--ttft", "3"), ("--schedules", "zero", "--preempt")]
    )
    def test_what_says_nothing_of_a_stream_is_refused_in_a_line(self, capsys, more):
        run("--requests", "30", *more, code=2)
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


class TestEnergy:
    def test_text_and_json_weigh_speed_against_energy_and_say_what_it_costs(self, tmp_path, capsys):
        picture, file = tmp_path / "front.png", tmp_path / "plan.json"
        prices = ("--price-per-hour", "0.5", "--price-per-kwh", "0.3")
        given = ("--objective", "energy", "--power-cap", "55,70", "--plot-energy", str(picture), *prices, "--no-band")
        run(*given, "--json", str(file))
        table, text = json.loads(file.read_text()), " ".join(capsys.readouterr().out.split())
        points = table["energy_front"]["points"]
        assert table["energy_j_per_token"] <= 1.01 * points[-1]["energy_j_per_token"]
        assert table["power_cap"]["power_cap_w"] in (55, 70)
        rate, joules = table["throughput_tokens_per_s"], table["energy_j_per_token"]
        token = 0.5 / 3600 / rate + 0.3 / 3.6e6 * joules
        assert table["money_per_million_tokens"] == pytest.approx(token * 1e6)
        assert table["money_per_request"] == pytest.approx(token * 5)
        assert all(one["money_per_request"] > 0 for one in (*points, *table["top"]))
        for said in ("speed against energy", "Each device is held to 55 of 70 W", "cube of the clocks", "money/M"):
            assert said in text
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_the_fastest_within_a_limit_or_the_least_there_is(self, capsys):
        free, least = planned(capsys), planned(capsys, "--objective", "energy")
        assert "energy_front" not in free
        most = least["energy_j_per_token"] * 1.02
        within = planned(capsys, "--max-joules-per-token", str(most))
        assert within["energy_j_per_token"] <= most
        assert least["throughput_tokens_per_s"] <= within["throughput_tokens_per_s"]
        assert within["throughput_tokens_per_s"] <= 1.02 * free["throughput_tokens_per_s"]  # looked for more closely
        run("--max-joules-per-token", "0.0001", code=2)
        error = capsys.readouterr().err
        assert "no policy generates a token with 0.0001 J; the fewest joules are" in error
        assert error.count("\n") == 1

    def test_of_requests_each_way_has_its_price(self, capsys):
        table = planned(capsys, "--requests", "30", "--price-per-kwh", "0.3", "--gen-len", "7")
        joules = table["energy_j_per_token"]
        assert table["money_per_request"] == pytest.approx(7 * 0.3 / 3.6e6 * joules)
        assert table["ways"][0]["money_per_request"] == table["money_per_request"]

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--power-cap", "fast"], "--power-cap: 'fast' is not allowed; give watts above 0"),
            (["--power-cap", "1"], "power cap: 1 W is less than"),
            (["--max-joules-per-token", "0"], "--max-joules-per-token: 0 is not allowed"),
            (["--max-joules-per-token", "3", "--objective", "latency"], "limits throughput, not latency"),
            (["--price-per-kwh", "-1"], "--price-per-kwh: -1.0 is not allowed"),
            (["--optimizer", "hrm", "--schedules", "cgopipe", "--power-cap", "60"], "leave out what asks for energy"),
            (["--requests", "30", "--power-cap", "60"], "--power-cap: with --requests"),
        ],
    )
    def test_mistakes_are_told_in_a_line(self, args, message, capsys):
        run(*args, code=2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
