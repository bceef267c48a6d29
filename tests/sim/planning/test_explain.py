"""What a plan says of itself: memories, rivals, and machines that are planned anew."""

import json
from dataclasses import replace
from functools import cache

import pytest
from plan_examples import SMALL, simple_problem

from sim.planning import best_policy
from sim.planning.explanation import FACTORS, RESOURCES, explain, near, scaled, sentences, without_anomaly
from sim.planning.search import plan
from sim.problem import Policy
from sim.schedule import Place
from sim.simulation import predict
from traces.errors import InputError

NAMES = ["cgopipe", "zero"]


@cache
def explained(problem, replan=False):
    choice = plan(problem, NAMES, grid=SMALL, refine=False, jobs=1, at_least=4)
    return choice, explain(choice, predict(choice.best.setup), jobs=1, replan=replan)


def changes(why):
    return {(one.resource, one.factor): one.change for one in why.replanned}


class TestWhatBinds:
    def test_each_memory_with_its_parts_and_what_it_holds(self):
        choice, why = explained(simple_problem())
        peaks = choice.best.setup.memory.peak_bytes()
        assert {tier.name: tier.used_bytes for tier in why.tiers} == peaks
        capacities = {tier.name: tier.capacity_bytes for tier in why.tiers}
        assert capacities == {"device": 64_000_000_000, "host": 1_000_000_000_000, "pinned": 500_000_000_000}

    def test_the_lane_that_binds_each_phase(self):
        _, why = explained(simple_problem(host__attention__memory=1e-4, link__h2d=1e9, link__h2d_pageable=1e9))
        prefill, decode = why.binding[:2]
        assert prefill.startswith("prefill")
        assert decode.startswith("decode")
        choice, why = explained(simple_problem(gen_len=40, device__experts__compute=1e-4))
        prediction = predict(choice.best.setup)
        assert f"bound by {prediction.prefill.bottleneck}, " in why.binding[0]
        assert f"bound by {prediction.decode.bottleneck}, " in why.binding[1]

    def test_a_memory_that_is_full_is_named(self):
        problem = simple_problem(device_memory__capacity=12e9)
        choice, why = explained(problem)
        need = choice.best.setup.memory.peak_bytes()["host"]
        tight = replace(problem, hardware=problem.hardware.with_value("host_memory.capacity", need * 1.001))
        _, full = explained(tight)
        assert any(text.startswith("host memory is full") for text in full.binding)
        assert not any("host memory is full" in text for text in why.binding)

    def test_how_far_from_the_lower_bound(self):
        choice, why = explained(simple_problem())
        best = choice.best
        assert why.above_bound == pytest.approx(best.bound_tokens_per_s / best.throughput_tokens_per_s - 1)
        assert why.above_bound > -2e-3


class TestRivals:
    def test_the_next_schedule_lost_by_its_lanes(self):
        choice, why = explained(simple_problem())
        second = list(choice.plans.values())[1].best
        assert why.next_schedule.candidate is second
        assert why.next_schedule.reason.startswith(f"{second.schedule} {second.setup.policy} reaches")
        tokens = second.setup.batch.generated_tokens / 1000
        for lane, (_, theirs) in why.next_schedule.lanes_s.items():
            own = second.lanes.get(lane)
            assert theirs == pytest.approx(own.busy_s / tokens if own else 0.0)

    def test_the_next_policy_differs_in_more_than_pages(self):
        choice, why = explained(simple_problem())
        mine, theirs = choice.best.setup.policy, why.next_policy.candidate.setup.policy
        assert replace(mine, pages=None, pin_weights=False) != replace(theirs, pages=None, pin_weights=False)
        rate = why.next_policy.candidate.throughput_tokens_per_s
        faster = [one for one in choice.plan.ranked if one.throughput_tokens_per_s > rate]
        assert {(one.setup.policy.micro_batch_size, one.setup.policy.num_micro_batches) for one in faster} == {
            (mine.micro_batch_size, mine.num_micro_batches)
        }
        assert why.next_policy.candidate.schedule == choice.best.schedule


class TestReplanned:
    SLOW_LINK = simple_problem(
        link__h2d=5e8, link__h2d_pageable=5e8, device_memory__capacity=11e9, host_memory__capacity=30e9, pinned=29e9
    )

    def test_every_resource_by_every_factor(self):
        _, why = explained(self.SLOW_LINK, replan=True)
        assert list(changes(why)) == [(resource, factor) for resource in RESOURCES for factor in FACTORS]
        assert all(change > -1e-9 for (_, factor), change in changes(why).items() if factor > 1), "more costs nothing"

    def test_more_costs_nothing_however_little_is_looked_at(self, monkeypatch):
        monkeypatch.setattr("sim.planning.explanation.near", lambda _: near(Policy(1, 1)))
        choice = plan(self.SLOW_LINK, ["cgopipe", "flexgen-c", "zero"], grid=SMALL, refine=False, jobs=1, at_least=4)
        why = explain(choice, predict(choice.best.setup), jobs=1, replan=True)
        least = choice.best.throughput_tokens_per_s * (1 - 1e-3)  # work that starts earlier may meet other work
        assert all(one.best.throughput_tokens_per_s > least for one in why.replanned if one.factor > 1)

    def test_an_anomaly_is_no_gain_and_no_loss(self):
        """Work that starts earlier may end later; what is more may be left unused, and what is less is no help."""
        assert [without_anomaly(change, 1.1) for change in (-0.02, 0.0, 0.3)] == [0.0, 0.0, 0.3]
        assert [without_anomaly(change, 0.9) for change in (-0.2, 0.0, 0.01)] == [-0.2, 0.0, 0.0]

    def test_what_binds_gives_most_and_less_of_it_costs(self):
        _, why = explained(self.SLOW_LINK, replan=True)
        found = changes(why)
        assert found["link", 2.0] > 0.4
        assert found["link", 0.9] < -0.05
        assert found["link", 2.0] > found["link", 1.1] > 0.03
        assert abs(found["GPU rate", 1.1]) < 0.02

    def test_a_machine_is_planned_anew_and_not_only_simulated_again(self):
        """Host memory for twice the batch changes nothing for the policy as it was."""
        choice, why = explained(self.SLOW_LINK, replan=True)
        more = next(one for one in why.replanned if (one.resource, one.factor) == ("host memory", 2.0))
        assert more.best.setup.policy != choice.best.setup.policy
        assert more.change > 0.1
        again = best_policy(
            more.best.setup.problem, more.best.setup.schedule, grid=near(choice.best.setup.policy), refine=False
        )
        assert again.best.throughput_tokens_per_s == more.best.throughput_tokens_per_s

    def test_a_machine_on_which_nothing_fits_says_so(self, monkeypatch):
        monkeypatch.setattr("sim.planning.explanation.FACTORS", (0.3, 1.0))
        monkeypatch.setattr("sim.planning.explanation.RESOURCES", {"device memory": RESOURCES["device memory"]})
        choice, _ = explained(simple_problem(device_memory__capacity=11e9))
        found = explain(choice, jobs=1).replanned
        less, same = found
        assert (less.best, less.change) == (None, None)
        assert same.best.throughput_tokens_per_s >= choice.best.throughput_tokens_per_s * (1 - 2e-3)

    @pytest.mark.parametrize("resource", RESOURCES)
    def test_twice_as_much_is_twice_as_much(self, resource):
        hardware = simple_problem().hardware
        more = scaled(hardware, resource, 2.0)
        for path in RESOURCES[resource]:
            name = path.removeprefix("1 / ")
            expected = hardware.value(name) / 2 if path.startswith("1 / ") else hardware.value(name) * 2
            assert more.value(name) == pytest.approx(expected)
        changed = {name for name, value in more.quantities() if value != hardware.value(name)}
        assert changed == {path.removeprefix("1 / ") for path in RESOURCES[resource]}

    def test_no_such_machine(self):
        with pytest.raises(InputError):
            scaled(simple_problem().hardware, "link", 0.0)

    def test_the_choice_is_among_what_is_planned_anew(self):
        choice, _ = explained(simple_problem())
        grid = near(choice.best.setup.policy)
        assert choice.best.setup.policy.micro_batch_size in grid.micro_batch_sizes
        assert choice.best.setup.policy.num_micro_batches in grid.num_micro_batches
        assert choice.best.setup.policy.kv_on_device in grid.kv_shares


class TestWords:
    def test_sentences_name_what_the_numbers_say(self):
        choice, why = explained(TestReplanned.SLOW_LINK, replan=True)
        text = " ".join(sentences(choice, why))
        assert choice.best.schedule in text
        assert why.next_schedule.reason in text
        gain = changes(why)["link", 2.0]
        assert f"link {gain:+.0%}" in text

    def test_all_of_it_is_json(self):
        _, why = explained(TestReplanned.SLOW_LINK, replan=True)
        table = json.loads(json.dumps(why.to_dict()))
        reasons = {"binding", "memory", "above_lower_bound", "next_schedule", "next_policy", "replanned"}
        assert set(table) == reasons | {"experts", "one_more_gb_of_device_memory"}
        assert table["replanned"][0]["resource"] == "host memory"
        assert Place(table["next_policy"]["policy"]["attention"])
