"""The machine at hand in numbers: what is measured, and the machine that is made of it."""
