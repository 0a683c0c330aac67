"""Published models: where they are, what their files say, and their weights."""
