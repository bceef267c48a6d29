"""What is asked: a model on a machine for a workload, and the policy it runs with."""
