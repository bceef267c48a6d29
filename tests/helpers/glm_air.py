"""GLM-4.5-Air as its config.json has it: experts, one shared, a dense first layer."""

GLM_AIR = {
    "model_type": "glm4_moe",
    "hidden_size": 4096,
    "head_dim": 128,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 46,
    "vocab_size": 151552,
}
