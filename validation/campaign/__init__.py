"""A campaign: calibrate, run the engine over a grid, predict each run from the calibration alone, and report."""
