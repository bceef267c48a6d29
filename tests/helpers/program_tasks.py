"""A compiled program and a schedule's tasks in the same words, so that they can be compared."""

from sim.simulation.compiled.dependencies import LANE, OPS


def told(program, kind):
    """One step of a program, lane by lane: (op, lane, step ahead, layer, micro-batch, page, dependencies)."""
    steps = {}
    for lane, name in enumerate(program.lanes):
        for place in range(program.lane_start[kind, lane], program.lane_start[kind, lane + 1]):
            deps = program.deps[program.dep_start[place] : program.dep_start[place + 1]].tolist()
            op, _, *where = program.rows[place].tolist()[:-1]
            assert program.rows[place, LANE] == lane
            steps.setdefault(name, []).append(
                (OPS[op], *where, [(program.lanes[on], at, OPS[of]) for on, at, of in deps])
            )
    return steps


def as_told(steps):
    """Steps of tasks in the same words: a dependency is a lane, a place there from that step's first task, an op."""
    place, found, counts = {}, [], {}
    for number, tasks in enumerate(steps):
        before, own = dict(counts), {}
        for one in tasks:
            place[one.id] = (one.lane, counts.get(one.lane, 0), one.op)
            counts[one.lane] = counts.get(one.lane, 0) + 1
        for one in tasks:
            deps = [place[dep] for dep in one.deps if dep in place]
            deps = [(lane, at - before.get(lane, 0), op) for lane, at, op in deps]
            ahead = one.step - number
            own.setdefault(one.lane, []).append((one.op, ahead, one.layer, one.micro_batch, one.page, deps))
        found.append(own)
    return found
