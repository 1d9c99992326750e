"""The contract: vocabulary, records, commands, replies, refusals and bounds, without any I/O."""
