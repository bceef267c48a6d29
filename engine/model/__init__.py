"""A Transformers model opened from outside: each micro-batch a coroutine through unmodified generate()."""
