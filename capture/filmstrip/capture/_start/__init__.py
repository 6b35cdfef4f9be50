"""The folder that `filmstrip capture` puts in front of a training script's search path."""
