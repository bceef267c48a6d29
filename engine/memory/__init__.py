"""What lies where: weights, their slots and pages, buffers and activations."""
