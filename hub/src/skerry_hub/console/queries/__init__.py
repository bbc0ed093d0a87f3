"""What the console's pages read, and nothing that writes. Each module answers for one area, with typed values.

These are the joins and counts that only a page needs; what means something by itself (register, assign, advance) is
asked of the hub's services.
"""
