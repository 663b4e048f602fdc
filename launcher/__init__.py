"""Turn a model, a cluster and a few variables into a Megatron-Core training job."""
