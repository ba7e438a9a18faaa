"""The DeepSpeed boundary: batch arithmetic, the DeepSpeed dictionary, the engine."""
