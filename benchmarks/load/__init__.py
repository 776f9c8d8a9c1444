"""Parts of the load benchmarks: servers on one core, and their simulated clients on another."""
