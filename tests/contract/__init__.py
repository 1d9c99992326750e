"""The contract: ids, states, errors, policies, the manifest."""
