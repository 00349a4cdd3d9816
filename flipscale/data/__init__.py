"""Training data: shards, their index, the sample order, and the stream of batches."""
