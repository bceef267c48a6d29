"""The frame of every command line of the project, and the commands that read traces."""
