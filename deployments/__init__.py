"""How the flows are deployed, and whole configurations to start from."""
