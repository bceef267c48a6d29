"""The axes of a sweep: what their texts mean, and what is refused."""

import pytest
from hypothesis import given, strategies as st
from sim_examples import round_machine

from sim.problem import Hardware
from sim.sweep.axes import parse_axes, parse_axis, points
from traces.errors import InputError


def axis(text):
    return parse_axis(text, round_machine())


class TestValues:
    def test_a_list(self):
        one = axis("gen_len=32,64, 128")
        assert (one.label, one.names, one.values) == ("gen_len", ("gen_len",), (32, 64, 128))

    def test_a_range(self):
        assert axis("hardware.link.h2d=8..64x8").values == (8, 16, 24, 32, 40, 48, 56, 64)
        assert axis("policy.experts_on_device=0..1x3").values == (0, 0.5, 1)
        assert axis("gen_len=32..128x4").values == (32, 64, 96, 128)

    def test_a_range_may_fall(self):
        assert axis("hardware.link.h2d=3..1x3").values == (3, 2, 1)

    @given(st.integers(-9, 9).filter(bool), st.integers(1, 50), st.integers(2, 40))
    def test_a_range_is_evenly_spread_and_holds_both_ends(self, step, first, count):
        last = first + step * (count - 1)
        if last > 0:
            assert axis(f"gen_len={first}..{last}x{count}").values == tuple(
                range(first, last + step // abs(step), step)
            )

    def test_names_keep_their_dots_and_factors_of_names(self):
        assert axis("model=mixtral-8x7b,dbrx").values == ("mixtral-8x7b", "dbrx")
        assert axis("workload=a..b/c.toml").values == ("a..b/c.toml",)

    def test_each_field_of_a_policy_has_its_kind(self):
        assert axis("policy.micro_batch_size=4").values == (4,)
        assert axis("policy.attention=cpu,gpu").values == ("cpu", "gpu")
        assert axis("policy.pin_weights=true,false").values == (1.0, 0.0)
        assert axis("policy.pin_weights=0..1x3").values == (0.0, 0.5, 1.0)
        assert axis("policy.pages=none,4").values == (None, 4)
        assert axis("policy.kv_bits=none,4.5").values == (None, 4.5)
        assert axis("padded=false,true").values == (False, True)


class TestNumbersOfMachines:
    def test_they_have_the_unit_of_the_machines_file(self):
        assert axis("hardware.link.h2d=8").settings[0].scale == 1e9
        assert axis("hardware.host.peak=2").settings[0].scale == 1e12
        assert axis("hardware.link.latency=2").settings[0].scale == 1e-6

    def test_or_one_of_their_own(self):
        one = axis("hardware.link.h2d[GiB/s]=8")
        assert (one.label, one.settings[0].scale) == ("hardware.link.h2d[GiB/s]", 2**30)

    def test_factors(self):
        one = axis("hardware.link.h2d*=1..4x4")
        assert (one.label, one.factor, one.values) == ("hardware.link.h2d*", True, (1, 2, 3, 4))

    def test_several_together_and_a_label(self):
        one = axis("cpu:hardware.host.peak+hardware.host_memory.bandwidth*=1,10")
        assert (one.label, one.names) == ("cpu", ("hardware.host.peak", "hardware.host_memory.bandwidth"))
        joint = axis("hardware.link.h2d+hardware.link.d2h=8,16")
        assert (joint.label, joint.factor) == ("hardware.link.h2d+hardware.link.d2h", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gen_len", "not an axis; give NAME=V1,V2"),
        ("gen_lem=3", "did you mean gen_len"),
        ("hardware.link.h2=3", "did you mean hardware.link.h2d"),
        ("h2d=3", "no such setting; did you mean"),
        ("policy.microbatch_size=3", "did you mean policy.micro_batch_size"),
        ("hardware.link.h2d[TFLOPS]=3", "it is given in B/s, KB/s"),
        ("gen_len[GB]=3", "only numbers of the machine"),
        ("gen_len*=3", "only numbers of the machine"),
        ("hardware.link.h2x*=3", "did you mean hardware.link.h2d"),
        ("gen_len=32,,64", "a value is missing"),
        ("gen_len=", "a value is missing"),
        ("gen_len=1,x", "'x' is not a whole number of at least 1"),
        ("gen_len=0", "'0' is not a whole number of at least 1"),
        ("gen_len=1..2x3", "'1.5' is not a whole number"),
        ("gen_len=32..64", "say how many values, at least 2, as in 32..64x5"),
        ("gen_len=32..64x1", "say how many values"),
        ("gen_len=32,032", "the value 32 is given twice"),
        ("hardware.link.h2d=fast", "'fast' is not a number"),
        ("hardware.link.h2d*=0", "'0' is not a factor"),
        ("policy.attention=tpu", "give cpu or gpu"),
        ("policy.experts_on_device=2", "not a share from 0 to 1"),
        ("padded=yes", "neither true nor false"),
        ("padded+gen_len=true", "not a whole number"),
    ],
)
def test_what_is_refused_in_one_line(text, message):
    with pytest.raises(InputError) as caught:
        axis(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("--axis")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["gen_len=1", "gen_len=2"], "gen_len is set twice"),
        (["a:hardware.link.h2d=1", "b:hardware.link.d2h+hardware.link.h2d=2"], "hardware.link.h2d is set twice"),
        (["a:gen_len=1", "a:padded=true"], "a is set twice"),
        (["prompt_len=1", "workload=mtbench"], "prompt_len stands instead of a workload"),
    ],
)
def test_axes_that_cannot_stand_together(texts, message):
    with pytest.raises(InputError, match=message):
        parse_axes(texts, round_machine())


def test_the_last_axis_is_the_fastest():
    axes = parse_axes(["gen_len=1,2", "policy.attention=cpu,gpu"], Hardware.load("gcp-t4"))
    assert list(points(axes)) == [(1, "cpu"), (1, "gpu"), (2, "cpu"), (2, "gpu")]
