"""Names of tensors: official on one side, diffusers and transformers on the other."""
