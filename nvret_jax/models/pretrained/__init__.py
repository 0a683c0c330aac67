"""Published models: their folders, settings, tokenizers and weights."""
