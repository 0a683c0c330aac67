"""Backbones: the layers between token ids and hidden states."""
