"""Readers and writers of tensor files, as NumPy views: safetensors, PyTorch .bin, TensorFlow 1, Flax msgpack."""
