"""The loop and its parts, on tiny towers and procedural shapes. Metrics are tested elsewhere."""
