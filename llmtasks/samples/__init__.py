"""Texts of our own for trying out. One of them quotes an instruction, which must stay a quotation."""
