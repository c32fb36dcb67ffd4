"""The embedded offline model: scenario files played back as real Responses bytes, in process or over HTTP."""
