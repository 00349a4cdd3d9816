"""The models: towers, masking, presets, and the shapes that the phases of a job give them."""
