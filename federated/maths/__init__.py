"""Mathematics shared by several algorithms, or by both halves of one. No module here does input or output."""
