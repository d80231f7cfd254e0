"""From a model file to a file that an engine loads and that proves itself."""
