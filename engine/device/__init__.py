"""Devices: a memory with accounts and lanes that work in order, on a real accelerator or an emulated one."""
