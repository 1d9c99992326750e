"""The Valkey backend: standalone or cluster, one atomic function per operation."""
