"""The model: layers, attention, encoder, heads and the conversion of published weights. Flax is imported here only."""
