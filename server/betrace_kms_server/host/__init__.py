"""The machine under the daemon: sockets, volumes, files, threads."""
