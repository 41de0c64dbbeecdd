"""What the train stage is made of: data, batches, losses, optimizer and resuming."""
