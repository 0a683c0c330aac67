"""Writing an encoder as a folder that other tools load."""
