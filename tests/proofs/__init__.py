"""What the proofs have in common: waiting for conditions, figures, and clients that misbehave."""
