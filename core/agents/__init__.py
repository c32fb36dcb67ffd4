"""The control plane: registry, slots, mailbox, the turn loop, and the tools by which agents manage agents."""
