"""Other libraries' ways of loading, with weights that torchwick reads: one module for each library."""
