"""The policy: what it accepts, what it refuses by name, and the pipeline that it makes of a schedule and a model."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings, strategies as st
from sim_examples import preset

from sim.problem import Model, Placement, Policy, Split, Widths, read_policy_file, splits_of
from sim.schedule import Place, by_name, registered
from traces.errors import InputError

SETTINGS = settings(deadline=None, derandomize=True, max_examples=100)
CPU_SCHEDULES = ("cgopipe", "fastdecode", "flexgen-c", "hybrid")
RESIDENT_CACHE = ("zero", "accelerate", "n-cpu-moe", "cpu-experts", "expert-cache")


def refusal(call):
    """The message of the refusal, which is one line."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestFields:
    @pytest.mark.parametrize("value", [0, -1, 2.0, "8", True, None])
    @pytest.mark.parametrize("field", ["batch_size", "micro_batch_size"])
    def test_sizes_are_whole_numbers_of_at_least_one(self, field, value):
        shown = field.replace("_", "-")  # as the command line calls them
        message = refusal(lambda: Policy(**{"batch_size": 8, "micro_batch_size": 4, field: value}))
        assert message.startswith(f"{shown}: {value!r}")
        assert "at least 1" in message

    @pytest.mark.parametrize("value", [0, -3, 1.5, False])
    def test_pages_are_a_whole_number_or_none(self, value):
        assert refusal(lambda: Policy(8, 4, pages=value)).startswith(f"pages: {value!r}")
        assert Policy(8, 4, pages=None).pages is None

    @pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), "half", True, None])
    @pytest.mark.parametrize("field", ["experts_on_device", "kv_on_device", "attention_on_device"])
    def test_shares_lie_between_0_and_1(self, field, value):
        message = refusal(lambda: Policy(8, 4, **{field: value}))
        assert message.startswith(f"{field}: {value!r}")
        assert "0 to 1" in message

    @pytest.mark.parametrize(
        ("share", "requests", "stay"), [(0.0, 8, 0), (0.5, 7, 3), (0.99, 8, 7), (0.3, 10, 3), (0.7, 1, 0), (1.0, 7, 7)]
    )
    def test_whole_requests_keep_their_cache_on_the_device(self, share, requests, stay):
        assert Policy(8, 8, "gpu", kv_on_device=share).resident_requests(requests) == stay

    @pytest.mark.parametrize("value", [0, 0.99, 33, float("nan"), "wide", True])
    @pytest.mark.parametrize("field", ["weight_bits", "kv_bits"])
    def test_widths_lie_between_1_and_32_bits(self, field, value):
        assert refusal(lambda: Policy(8, 4, **{field: value})).startswith(f"{field}: {value!r}")

    def test_widths_that_are_not_given_are_the_model_s_own(self):
        model = replace(Model.load("mixtral-8x7b"), activation_bits=32.0)
        assert Policy(8, 4).cache_bits(model) == 32
        assert Policy(8, 4, kv_bits=8).cache_bits(model) == 8
        assert Policy(8, 4).widths(model) == model.widths

    @pytest.mark.parametrize("value", [1.1, -0.1, "yes", None])
    def test_pin_weights_is_a_share(self, value):
        assert refusal(lambda: Policy(8, 4, pin_weights=value)).startswith(f"pin_weights: {value!r}")

    @pytest.mark.parametrize(("value", "share"), [(True, 1.0), (False, 0.0), (1, 1.0), (0.25, 0.25)])
    def test_a_truth_stands_for_all_page_locked_weights_or_none(self, value, share):
        found = Policy(8, 4, pin_weights=value).pin_weights
        assert (type(found), found) == (float, share)

    @pytest.mark.parametrize(
        ("share", "num_bytes", "locked"),
        [(0.0, 10_000, 0), (1.0, 10_001, 10_001), (0.5, 10_000, 4096), (0.9, 10_000, 8192), (0.3, 10_000, 0)],
    )
    def test_all_of_a_layer_is_page_locked_or_whole_pages(self, share, num_bytes, locked):
        assert Policy(8, 4, pin_weights=share).locked_bytes(num_bytes) == locked

    def test_attention_runs_on_one_of_two_places(self):
        assert Policy(8, 4, attention="gpu").attention is Place.GPU
        message = refusal(lambda: Policy(8, 4, attention="tpu"))
        assert message.startswith("attention: 'tpu'")
        assert "cpu or gpu" in message

    def test_a_policy_cannot_be_changed(self):
        with pytest.raises(FrozenInstanceError):
            Policy(8, 4).batch_size = 9

    @given(batch=st.integers(1, 5000), size=st.integers(1, 600))
    @SETTINGS
    def test_micro_batches_cover_the_batch_and_none_is_empty(self, batch, size):
        policy = Policy(batch, size)
        assert policy.micro_batch_size <= batch
        assert (policy.num_micro_batches - 1) * policy.micro_batch_size < batch
        assert policy.num_micro_batches * policy.micro_batch_size >= batch

    def test_it_is_written_as_micro_batches_are_in_the_paper(self):
        assert str(Policy(504, 36)) == "36×14"


class TestFromTable:
    def test_an_unknown_field_is_named_with_the_nearest(self):
        message = refusal(lambda: Policy.from_dict({"batch_sise": 8, "micro_batch_size": 4}, by_name("cgopipe")))
        assert "policy.batch_sise" in message
        assert "did you mean batch_size" in message

    @pytest.mark.parametrize("missing", ["batch_size", "micro_batch_size"])
    def test_a_missing_size_is_named(self, missing):
        table = {"batch_size": 8, "micro_batch_size": 4}
        del table[missing]
        assert refusal(lambda: Policy.from_dict(table, by_name("cgopipe"))).startswith(f"policy.{missing}: missing")

    def test_the_number_of_micro_batches_may_stand_for_the_batch(self):
        policy = Policy.from_dict({"micro_batch_size": 36, "num_micro_batches": 14}, by_name("cgopipe"))
        assert (policy.batch_size, policy.micro_batch_size, policy.num_micro_batches) == (504, 36, 14)
        alone = Policy.from_dict({"micro_batch_size": 1, "num_micro_batches": 1}, by_name("cgopipe"))
        assert alone.batch_size == 1

    def test_the_number_of_micro_batches_may_agree_with_the_batch(self):
        table = {"batch_size": 500, "micro_batch_size": 36, "num_micro_batches": 14}
        assert Policy.from_dict(table, by_name("cgopipe")).batch_size == 500
        message = refusal(lambda: Policy.from_dict({**table, "num_micro_batches": 13}, by_name("cgopipe")))
        assert message.startswith("num_micro_batches: 13 does not agree with batch_size 500")
        assert "14" in message

    @pytest.mark.parametrize(("size", "count"), [(0, 3), (4, 0), (4, "3"), ("4", 3), (4, 2.0), (True, 3), (None, 3)])
    def test_a_product_needs_two_whole_numbers(self, size, count):
        table = {"micro_batch_size": size, "num_micro_batches": count}
        assert refusal(lambda: Policy.from_dict(table, by_name("cgopipe"))).startswith("num_micro_batches: ")

    def test_a_wrong_value_is_refused_as_by_the_policy_itself(self):
        table = {"batch_size": 8, "micro_batch_size": 4, "kv_bits": 99}
        assert refusal(lambda: Policy.from_dict(table, by_name("cgopipe"))).startswith("kv_bits: 99")

    @given(
        batch=st.integers(1, 3000),
        size=st.integers(1, 600),
        experts=st.floats(0, 1),
        pages=st.none() | st.integers(1, 99),
        pin=st.booleans() | st.floats(0, 1),
        bits=st.none() | st.floats(1, 32),
        name=st.sampled_from(sorted(registered())),
    )
    @SETTINGS
    def test_a_policy_survives_json(self, batch, size, experts, pages, pin, bits, name):
        schedule = by_name(name)
        given_ = {"experts_on_device": experts, "pages": pages, "pin_weights": pin, "weight_bits": bits}
        given_["attention_on_device"] = experts
        policy = Policy.usual(schedule, batch, size, **given_)
        table = json.loads(json.dumps(policy.to_dict()))
        assert table["num_micro_batches"] == policy.num_micro_batches
        assert Policy.from_dict(table, schedule) == policy
        assert Policy.from_dict(table, by_name("flexgen")) == policy, "a whole table leaves nothing to the schedule"


class TestPlaces:
    @pytest.mark.parametrize("name", sorted(registered()))
    def test_what_is_usual_for_a_schedule_works_with_it(self, name):
        schedule, model = by_name(name), preset("mixtral-8x7b")
        for policy in (
            Policy.usual(schedule, 8, 4),
            Policy.from_dict({"batch_size": 8, "micro_batch_size": 4}, schedule),
        ):
            assert policy.attention is (Place.CPU if name in CPU_SCHEDULES else Place.GPU)
            assert policy.kv_on_device == (1.0 if name in RESIDENT_CACHE else 0.0)
            policy.shape(schedule, model)

    def test_given_places_win_over_the_usual_ones(self):
        assert Policy.usual(by_name("cgopipe"), 8, 4, attention="gpu", kv_on_device=0.5).kv_on_device == 0.5

    @pytest.mark.parametrize(
        ("name", "wrong", "place"),
        [("flexgen", "cpu", "gpu"), ("zero", "cpu", "gpu"), ("flexgen-c", "gpu", "cpu"), ("fastdecode", "gpu", "cpu")],
    )
    def test_a_schedule_attends_only_where_it_can(self, name, wrong, place):
        schedule = by_name(name)
        policy = replace(Policy.usual(schedule, 8, 4), attention=Place(wrong))
        message = refusal(lambda: policy.shape(schedule, preset("mixtral-8x7b")))
        assert message.startswith(f"attention: {wrong} is not what {name} does")
        assert message.endswith(f"on {place}")

    @pytest.mark.parametrize("name", RESIDENT_CACHE)
    def test_a_cache_that_must_be_on_the_device_cannot_be_elsewhere(self, name):
        policy = Policy.usual(by_name(name), 8, 8, kv_on_device=0.5)
        message = refusal(lambda: policy.shape(by_name(name), preset("mixtral-8x7b")))
        assert message.startswith("kv_on_device: 0.5 is not what")

    def test_attention_on_the_cpu_needs_the_whole_cache_there(self):
        policy = Policy.usual(by_name("cgopipe"), 8, 4, kv_on_device=0.1)
        assert "attention on the cpu" in refusal(lambda: policy.shape(by_name("cgopipe"), preset("mixtral-8x7b")))

    @pytest.mark.parametrize(
        ("name", "fields", "says"),
        [
            ("fastdecode", {}, "is not what fastdecode does"),
            ("flexgen", {}, "is not what flexgen does"),
            ("cpu-experts", {}, "is not what cpu-experts does"),
            ("cgopipe", {"attention": "gpu"}, "with attention on the gpu, where all attend already"),
        ],
    )
    def test_only_some_schedules_attend_in_two_places(self, name, fields, says):
        policy = Policy.usual(by_name(name), 8, 4, attention_on_device=0.5, **fields)
        message = refusal(lambda: policy.shape(by_name(name), preset("mixtral-8x7b")))
        assert message == f"attention_on_device: 0.5 {says}: leave it out"

    @pytest.mark.parametrize(("share", "whole"), [(0.0, 0), (0.3, 1), (0.5, 2), (0.6, 3), (0.99, 4), (1.0, 5)])
    def test_whole_micro_batches_attend_on_the_device(self, share, whole):
        policy = Policy.usual(by_name("cgopipe"), 20, 4, attention_on_device=share)
        assert policy.shape(by_name("cgopipe"), preset("mixtral-8x7b")).attending_on_device == whole


class TestExperts:
    @pytest.mark.parametrize(("share", "whole"), [(0, 0), (0.0559, 0), (0.124, 0), (0.125, 1), (0.3, 2), (1, 8)])
    def test_resident_experts_are_whole(self, share, whole):
        model = preset("mixtral-8x7b")
        placement = Placement.of(Policy(8, 4, experts_on_device=share), by_name("cgopipe"), model)
        assert placement.splits == (Split(whole, 8 - whole),) * 32
        assert placement.streamed_bytes(0) == (8 - whole) * 2 * 3 * 4096 * 14336

    @given(total=st.integers(1, 512), data=st.data())
    @SETTINGS
    def test_a_share_of_n_experts_is_n_experts(self, total, data):
        """m / n is not exact in binary: no expert may be lost by it."""
        wanted = data.draw(st.integers(0, total))
        policy = Policy(8, 4, experts_on_device=wanted / total)
        assert splits_of(policy, by_name("cgopipe").system, (total,)) == (Split(wanted, total - wanted),)

    def test_weights_keep_the_models_width_unless_the_policy_says_so(self):
        model = replace(preset("mixtral-8x7b"), widths=Widths(experts=4.25))
        native = Placement.of(Policy(8, 4), by_name("cgopipe"), model)
        assert native.streamed_bytes(0) == 8 * (3 * 4096 * 14336 * 4.25 / 8)
        narrow = Placement.of(Policy(8, 4, weight_bits=8), by_name("cgopipe"), model)
        assert narrow.streamed_bytes(0) == 8 * 3 * 4096 * 14336


class TestShape:
    def shape(self, name="cgopipe", model="mixtral-8x7b", **fields):
        schedule = by_name(name)
        policy = Policy.usual(schedule, **{"batch_size": 12, "micro_batch_size": 4, **fields})
        return policy.shape(schedule, preset(model))

    def test_a_page_for_each_micro_batch_unless_told_otherwise(self):
        assert self.shape().num_pages == self.shape().num_micro_batches == 3
        assert self.shape(pages=7).num_pages == 7
        assert self.shape("flexgen", pages=7).num_pages == 1, "whole layers"

    def test_a_layer_streams_if_any_of_its_weights_do(self):
        assert self.shape().streamed == (True,) * 32
        assert self.shape(experts_on_device=1.0).streamed == (False,) * 32
        assert self.shape("zero", experts_on_device=1.0).streamed == (True,) * 32, "its attention weights"
        assert self.shape(model="deepseek-v2-lite").streamed == (False, *(True,) * 26), "a dense layer leads"

    def test_the_cache_streams_unless_all_of_it_is_on_the_device(self):
        assert self.shape().streams_kv
        assert self.shape("flexgen", kv_on_device=0.99).streams_kv
        assert not self.shape("flexgen", kv_on_device=1.0).streams_kv

    def test_hidden_states_stay_on_the_device_if_there_is_one_micro_batch(self):
        assert self.shape().offloads_hidden
        assert not self.shape(batch_size=4).offloads_hidden
        assert not self.shape("zero").offloads_hidden

    def test_pinned_weights_need_no_staging(self):
        assert self.shape(pin_weights=True).weights_pinned
        assert not self.shape().weights_pinned
        assert not self.shape(pin_weights=0.999).weights_pinned, "some of them do"

    def test_a_dropped_micro_batch_is_no_part_of_the_pipeline(self):
        schedule = by_name("cgopipe")
        shape = Policy.usual(schedule, 12, 4).shape(schedule, preset("mixtral-8x7b"), num_micro_batches=2)
        assert (shape.num_micro_batches, shape.num_pages) == (2, 2)


class TestFile:
    def test_it_holds_the_fields_and_perhaps_the_schedule(self, tmp_path):
        path = tmp_path / "policy.json"
        path.write_text('{"schedule": "flexgen", "batch_size": 8, "micro_batch_size": 4}')
        assert read_policy_file(path) == ("flexgen", {"batch_size": 8, "micro_batch_size": 4})
        path.write_text('{"batch_size": 8}')
        assert read_policy_file(path) == (None, {"batch_size": 8})

    @pytest.mark.parametrize(
        ("content", "said"),
        [("{batch_size: 8}", "not JSON"), ("", "not JSON"), ("[8, 4]", "holds a list"), ("8", "holds a int")],
    )
    def test_other_content_is_refused_with_the_path(self, tmp_path, content, said):
        path = tmp_path / "policy.json"
        path.write_text(content)
        message = refusal(lambda: read_policy_file(path))
        assert str(path) in message
        assert said in message

    def test_a_file_that_cannot_be_read_is_refused_with_the_path(self, tmp_path):
        for path in (tmp_path / "none.json", tmp_path):
            message = refusal(lambda path=path: read_policy_file(path))
            assert str(path) in message
            assert "cannot be read" in message

    def test_bytes_that_are_no_text_are_refused(self, tmp_path):
        path = tmp_path / "policy.json"
        path.write_bytes(b"\xff\xfe{}")
        assert "not a text file" in refusal(lambda: read_policy_file(path))


@pytest.mark.parametrize("name", ["accelerate", "zero"])
def test_a_schedule_that_streams_whole_layers_keeps_all_experts_or_none(name):
    schedule = by_name(name)
    for share in (0.0, 1.0):
        Policy.usual(schedule, 8, 4, experts_on_device=share).check_places(schedule)
    with pytest.raises(InputError, match=rf"^experts_on_device: 0.5 is not what {name} does; .* give 0 or 1$"):
        Policy.usual(schedule, 8, 4, experts_on_device=0.5).check_places(schedule)
