"""What each op of a schedule does to tensors."""
