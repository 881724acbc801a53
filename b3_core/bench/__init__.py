"""What this project does, timed beside what others do: one module a question."""
