"""Many runs of our own engine, predicted from a calibration alone."""
