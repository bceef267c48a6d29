"""What is told of a proof: whether tokens agree, what moved and how long it took, and what each memory held."""

from engine.running.xla.proof import JaxProof
from traces.cli import TEXT, Report

MB = 1e6


def print_proof(proof: JaxProof) -> None:
    """Print it."""
    out, result = Report(), proof.result
    device, said = result.trace.metadata["device"], result.trace.metadata
    out.say(
        f"[bold]{said['origin']}[/bold], jax {said['versions']['jax']}: memories {', '.join(device['memory_kinds'])}; "
        f"{said['model']} by {said['schedule']}"
    )
    same = proof.num_requests - len(proof.differing)
    out.say(
        f"tokens equal to the PyTorch engine's: [bold]{'yes' if proof.equal else 'no'}[/bold] ({same} of "
        f"{proof.num_requests} requests, {proof.generated_tokens} tokens, {proof.dtype})"
    )
    columns = {"op": TEXT, "lane": TEXT, "tasks": "d", "MB": ".3f", "busy ms": ".1f"}
    rows = ((one.op, one.lane, one.tasks, one.bytes / MB or None, one.busy_s * 1e3) for one in proof.ops)
    out.table(columns, rows, "one run, compiled before")
    held = ", ".join(f"{name} {count / MB:.2f} MB" for name, count in result.peak_bytes.items())
    out.say(f"most held: {held}; the largest program needs {result.temporary_bytes / MB:.2f} MB beside that")
    out.say(
        f"{proof.run_s:.2f} s ({proof.generated_tokens / proof.run_s:.1f} tokens/s); the first run, which compiled "
        f"{result.num_programs} programs, {proof.first_run_s:.2f} s"
    )
    asked = proof.callback
    out.say(
        f"a program behind one that asks the host for {asked.on_host_s:.2f} s was done after {asked.other_s:.2f} s: "
        f"{'it waits, so' if asked.holds_up else 'it need not wait; still'} attention on the host has a lane of its own"
    )
