"""The prediction: how an offloaded Mixture-of-Experts model will run on a given machine, and why."""
