"""MoE-Lightning's own performance model, the Hierarchical Roofline Model."""
