"""Search: the network that a goal asks for, out of variants of the given one."""
