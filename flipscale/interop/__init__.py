"""Exchange of models with OpenCLIP, and models loaded from wherever they are stored."""
