"""The boundary between engine and faces: commands in; a snapshot, events and pages out; plain data only."""
