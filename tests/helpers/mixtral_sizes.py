"""Sizes in one layer of Mixtral 8x7B, worked out from its published dimensions."""

KV_BYTES = 2 * 2 * 8 * 128  # key and value, two bytes, 8 heads of 128: 4,096
D1_BYTES = 2 * (32 * 128 + 2 * 8 * 128)  # query, key and value: 12,288
D2_BYTES = 2 * 4096  # a hidden state: 8,192
QKV_WEIGHTS = 4096 * (4096 + 2 * 1024)
EXPERT_BYTES = 2 * 3 * 4096 * 14336
EXPERTS_BYTES = 8 * EXPERT_BYTES  # of one layer: 2.819 GB
ROUTER_WEIGHTS = 8 * 4096
