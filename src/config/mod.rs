//! What the daemon was asked to do: command line, environment, net-conf.json.
