"""What the benchmarks under load are made of: servers on one core, who asks of them on the other."""
