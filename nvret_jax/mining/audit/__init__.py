"""How many mined negatives are false, estimated."""
