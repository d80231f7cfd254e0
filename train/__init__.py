"""Everything that ends with training: data, supervision, the loop."""
