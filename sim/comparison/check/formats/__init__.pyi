from .files import read_measurements as read_measurements, read_run_setting as read_run_setting
