"""The stages: front door, relay, fulfilment and keeper. Imported by the server and the command line."""
