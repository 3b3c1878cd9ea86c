"""What a run takes, before it is started: memory, time and disk, from its real steps on tensors without content."""
