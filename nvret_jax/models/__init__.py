"""Encoders: from text to vectors. `encoder.Encoder` is the way in."""
