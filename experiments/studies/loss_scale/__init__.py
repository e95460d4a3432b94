"""Whether a rule's training is the same when the loss is multiplied by a constant."""
