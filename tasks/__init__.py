"""Prefect tasks: names, retries and artifacts around b3_core."""
