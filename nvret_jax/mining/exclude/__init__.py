"""What can never be a negative, whatever its score."""
