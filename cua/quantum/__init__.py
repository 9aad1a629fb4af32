"""From blocks to qubits: circuits, noise and readouts from counts.  Nothing here knows a language model."""
