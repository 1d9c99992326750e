"""The server: real HTTP to a real server on a free loopback port, over a real store in memory."""
