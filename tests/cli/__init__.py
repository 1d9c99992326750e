"""The command line as people meet it: real processes against real servers and stores."""
