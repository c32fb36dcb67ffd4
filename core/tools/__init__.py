"""Tools that agents call: the interface, `exec_command`, approval policy and sandbox."""
