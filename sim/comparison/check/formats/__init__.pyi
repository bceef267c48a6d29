from .files import read_measurements as read_measurements, read_setting as read_setting
