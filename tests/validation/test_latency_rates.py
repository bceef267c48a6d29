"""Published rates: what a row is posed as, how near the predictions come, and that a fit finds what made the rows."""

import json
from dataclasses import replace
from statistics import median

import pytest

from sim.problem import Basis, Hardware
from sim.schedule import Place
from traces.errors import InputError
from validation.cli import main
from validation.published.latency import LATENCY, predict_rates, read_latency_rows
from validation.published.latency.fit import (
    EXPONENTS,
    FITTED_ROWS,
    RATE_FITS,
    ROWS_A_MACHINE,
    FittedRates,
    fit_rates,
)
from validation.published.latency.pose import pose_rate
from validation.published.latency.predict import Values, predict_rate
from validation.published.latency.report import MEDIAN_BAR, WORST_BAR, not_fitted, print_rates
from validation.published.latency.rows import LatencyRow, Metric
from validation.published.presets import set_numbers

LLAMA = LatencyRow(1, "one", "llama.cpp", "gpt-oss-120b", Metric.DECODE, gpu="RTX 3090", placement="n-cpu-moe=25")
TRANSFORMERS = replace(
    LLAMA, system="KTransformers", model="Qwen3-Next-80B-A3B", precision="FP8", gpu="RTX 4090", num_gpus=4, cpu="6454S"
)
HOOKS = replace(LLAMA, system="Accelerate", model="Mixtral-8x7B", gpu="A5000 24GB", placement="")


@pytest.fixture(scope="module")
def rows():
    return read_latency_rows(LATENCY)[0]


@pytest.fixture(scope="module")
def predictions(rows):
    """Every published rate, predicted once with the presets as they are."""
    return list(predict_rates(rows, jobs=1))


def posed(row=LLAMA, **changes):
    return pose_rate(replace(row, **changes)).setup


class TestPosed:
    def test_layers_on_the_host(self):
        setup = posed()
        assert (setup.schedule.name, setup.policy.host_layers) == ("n-cpu-moe", (0, 25))
        assert posed(placement="n-cpu-moe=99").policy.host_layers == (0, 36)
        assert setup.policy.prefill_experts is Place.GPU

    def test_a_share_of_each_layer_on_the_device(self):
        policy = posed(TRANSFORMERS, placement="gpu-experts=0.4 random").policy
        assert (policy.experts_on_device, policy.experts_on_host) == (0.4, 0.6)

    def test_whole_layers_first_on_the_device(self):
        policy = posed(TRANSFORMERS, placement="gpu-experts=0.5 front-loading").policy
        assert (policy.experts_on_device, policy.host_layers) == (1.0, (24, 48))

    def test_popularity_counts_where_experts_are_placed_by_it(self):
        assert posed(TRANSFORMERS, placement="gpu-experts=0.4 frequency").problem.routing.exponent > 0
        assert posed(TRANSFORMERS, placement="gpu-experts=0.4 random").problem.routing.exponent == 0

    def test_the_placement_stands_for_the_words_of_the_source(self):
        assert posed(policy="--n-cpu-moe 7", placement="n-cpu-moe=9").policy.host_layers == (0, 9)
        assert posed(policy="--n-cpu-moe 7", placement="").policy.host_layers == (0, 7)

    def test_without_a_placement_llama_cpp_keeps_as_few_layers_on_the_host_as_fit(self):
        setup = posed(placement="")
        first, stop = setup.policy.host_layers
        assert setup.shortages == []
        assert posed(placement=f"n-cpu-moe={stop - 1}").shortages != []
        assert first == 0

    def test_a_cache_of_experts_serves_decode_only(self):
        cached = {"policy": "-ncmoe 99, 128 cache slots", "placement": "", "model": "Qwen3.6-35B-A3B Q4_K_M"}
        assert posed(**cached).policy.experts_on_device == 0.5
        assert posed(metric=Metric.PREFILL, **cached).policy.host_layers == (0, 40)

    def test_fewer_experts_a_token(self):
        model = posed(TRANSFORMERS, policy="6 experts", placement="all-cpu").problem.model
        assert {layer.top_k for layer in model.layers} == {6}

    @pytest.mark.parametrize(
        ("precision", "model", "bits"),
        [
            ("Q4_K_M", "gpt-oss-120b", (4.84, 4.84, 6.5625)),
            ("F16 gguf (MXFP4 experts)", "gpt-oss-120b", (4.25, 16, 16)),
            ("", "Qwen3-30B-A3B Q8_0", (8.5, 8.5, 8.5)),
            ("", "Mixtral-8x7B", (16, 16, 16)),
        ],
    )
    def test_widths_come_from_the_precision_or_the_name(self, precision, model, bits):
        found = posed(precision=precision, model=model).problem.model
        assert (found.widths.experts, found.widths.attention, found.widths.embedding) == bits

    def test_a_long_prompt_goes_through_in_pieces(self):
        assert posed(metric=Metric.PREFILL, prompt_len=4096).problem.workload.prompt_tokens == (512,)
        assert posed(metric=Metric.PREFILL, policy="-ub 2048").problem.workload.prompt_tokens == (2048,)
        assert posed(metric=Metric.PREFILL, prompt_len=100).problem.workload.prompt_tokens == (100,)

    def test_one_socket_reads_half_of_what_two_read(self):
        one, two = (
            posed(TRANSFORMERS, num_gpus=1, policy=f"{sockets} socket", placement="all-cpu").problem.hardware
            for sockets in ("single", "dual")
        )
        assert two.host_memory.bandwidth_bytes_per_s == 2 * one.host_memory.bandwidth_bytes_per_s

    def test_what_is_assumed_is_said(self):
        assert "prompts of 512 tokens; 128 tokens generated" in pose_rate(LLAMA).assumed
        assert "throughput read as decode throughput" in pose_rate(replace(LLAMA, metric=Metric.THROUGHPUT)).assumed
        assert pose_rate(replace(LLAMA, prompt_len=10, gen_len=10)).assumed == "machine rtx3090-ddr5"
        assert pose_rate(replace(LLAMA, prompt_len=10, gen_len=10, machine="rtx4090")).assumed == ""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"system": "vLLM"}, "system 'vLLM' is unknown; known: llama.cpp, KTransformers, DeepSpeed, Accelerate"),
            ({"model": "gpt-oss-120c"}, "unknown model 'gpt-oss-120c'; did you mean gpt-oss-120b"),
            ({"model": "NLLB-MoE-54B"}, "model 'NLLB-MoE-54B': is an encoder-decoder"),
            ({"precision": "Q3_X"}, "precision 'Q3_X' is unknown"),
            ({"gpu": "RTX 9999"}, "machine: none is known with 1 x RTX 9999 and a cpu not named; give a preset"),
            ({"cpu": "Ryzen 9 9950X"}, "machine: none is known with 1 x RTX 3090 and Ryzen 9 9950X"),
            ({"machine": "rtx4091"}, "did you mean rtx4090"),
            ({"dataset": "my prompts"}, "prompt_len: 'my prompts' is no known set of prompts; known: ShareGPT"),
            ({"system": "Accelerate"}, "placement: Accelerate places no experts; leave it empty"),
        ],
    )
    def test_what_cannot_be_posed_is_told(self, changes, said):
        with pytest.raises(InputError) as told:
            posed(**changes)
        assert said in str(told.value)
        assert predict_rate(replace(LLAMA, **changes)).reason == str(told.value)


class TestPredictions:
    def test_all_but_encoder_decoders_are_predicted(self, predictions):
        missing = {one.row.name: one.reason for one in predictions if one.value is None}
        assert missing.keys() == {"MI-016", "MI-022"}
        assert all("encoder-decoder" in reason for reason in missing.values())

    def test_rows_that_nothing_is_fitted_to_are_within_what_is_asked(self, predictions):
        errors = [abs(one.error) for one in not_fitted(predictions) if one.error is not None]
        assert len(errors) == 18
        assert median(errors) <= MEDIAN_BAR
        assert max(errors) <= WORST_BAR

    def test_more_experts_on_the_device_are_faster_the_popular_ones_most(self):
        def rate(placement):
            return predict_rate(replace(TRANSFORMERS, placement=placement)).value

        rates = [rate(f"gpu-experts={share} random") for share in (0, 0.2, 0.4, 0.6, 0.8, 1)]
        assert rates == sorted(rates)
        assert rate("gpu-experts=0.4 frequency") > 1.03 * rate("gpu-experts=0.4 random")

    def test_hooks_fetch_what_a_token_needs(self):
        """Accelerate with Mixtral at one request: 6.6 s a token were measured, where all experts would take 23 s."""
        seconds = predict_rate(replace(HOOKS, metric=Metric.TOKEN)).value
        assert seconds == pytest.approx(6.633, rel=0.05)

    def test_prefill_rates_are_of_prompts_and_the_others_of_generated_tokens(self):
        few = replace(LLAMA, num_requests=4, prompt_len=64, gen_len=8)
        setup = pose_rate(few).setup
        rate, token_s = (predict_rate(replace(few, metric=one)).value for one in (Metric.DECODE, Metric.TOKEN))
        assert setup.batch.num_requests == 4
        assert rate == pytest.approx(4 / token_s)
        prefill = predict_rate(replace(few, metric=Metric.PREFILL)).value
        assert prefill > 4 * rate

    def test_what_is_shown_names_fitted_rows(self, predictions, capsys):
        print_rates(predictions, own_file=False)
        shown = capsys.readouterr().out
        assert shown.count("fitted") > len(FITTED_ROWS)
        assert "MI-016: no prediction" in shown


class TestFit:
    def test_two_rows_a_machine_at_most_and_one_a_model(self, rows):
        names = {row.name for row in rows}
        assert all(len(case.rows) <= ROWS_A_MACHINE and names >= set(case.rows) for case in RATE_FITS)
        assert all(len(case.parameters) <= len(case.rows) for case in RATE_FITS)
        assert len({case.machine for case in RATE_FITS}) == len(RATE_FITS)
        assert len({one.model for one in EXPONENTS}) == len(EXPONENTS)

    def test_presets_hold_what_a_fit_would_set(self):
        for case in RATE_FITS:
            machine = Hardware.load(case.machine)
            for one in case.parameters:
                for path in one.paths:
                    assert machine.value(path).basis is Basis.FITTED, (case.machine, path)
                    assert one.low * 0.999 <= machine.value(path) <= one.high * 1.001

    def test_a_fit_finds_the_values_that_made_the_rows(self, rows):
        """Of all machines and of popularity, from rows as machines with known values would have run them."""

        def other(machine, one):
            return min(1.1 * Hardware.load(machine).value(one.paths[0]), one.high)

        true = {case.machine: {one.name: other(case.machine, one) for one in case.parameters} for case in RATE_FITS}
        made = FittedRates(true, {one.model: 0.8 for one in EXPONENTS})
        values = made.as_values
        wanted = [replace(row, value=predict_rate(row, values).value or 1.0) for row in rows]
        found = fit_rates(wanted)
        for machine, numbers in made.values.items():
            assert found.values[machine] == pytest.approx(numbers, rel=0.05), machine
        assert found.exponents == pytest.approx(made.exponents, rel=0.05)

    def test_values_are_written_into_the_files_of_the_machines(self, tmp_path):
        (tmp_path / "one.toml").write_text(
            'extends = "rtx4090"\n[link]\nh2d = { value = 25, unit = "GB/s", basis = "assumed", source = "guess" }\n'
        )
        path = set_numbers("one", {"link.h2d": 2e10}, "fitted to A and B", tmp_path)
        number = Hardware.load(path).value("link.h2d")
        assert (number, number.basis, number.source) == (pytest.approx(2e10), Basis.FITTED, "fitted to A and B")

    def test_values_by_name_stand_for_the_presets(self):
        machine = Hardware.load("rtx3090-ddr5").scaled("host_memory.bandwidth", 2)
        faster = predict_rate(LLAMA, Values({"rtx3090-ddr5": machine}, {})).value
        assert faster > 1.5 * predict_rate(LLAMA).value


def test_a_file_of_ones_own_is_predicted_with_a_machine_of_ones_own(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('extends = "rtx4090"\n')
    path = tmp_path / "rates.csv"
    path.write_text(
        "system,model,precision,placement,machine,metric,value,unit\n"
        f"llama.cpp,Mixtral-8x7B,Q4_K_M,n-cpu-moe=20,{tmp_path / 'mine.toml'},decode,20,tok/s\n"
        "Accelerate,Mixtral-8x7B,bf16,,a5000,seconds per token,,s\n"
    )
    assert main(["published", "--predict", str(path), "--jobs", "1", "--json", "-"]) == 0
    first, second = json.loads(capsys.readouterr().out)["rates"]
    assert first["error"] == pytest.approx(first["predicted"] / 20 - 1)
    assert (second["unit"], second["measured"], second["error"]) == ("s", None, None)
    assert second["predicted"] == pytest.approx(6.6, rel=0.1)
