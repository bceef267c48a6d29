"""Reading Hugging Face model configurations, without their library."""
