"""Encoders: from text to vectors. The entry point is `encoder.Encoder`."""
