"""The paper's experiments as cells of its tables, at the paper's scale and at a toy's."""
