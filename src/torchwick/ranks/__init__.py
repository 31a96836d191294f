"""The ranks of torch.distributed, and how they agree, so that all of them go on or none does."""
