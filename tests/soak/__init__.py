"""What numformer promises under stress, measured for as long as is wanted: ``python -m tests.soak --minutes 10``."""
